"""Explicit random streams. Nothing in flowpolicy draws from a global generator.

A stream is named by a seed and a path of words and numbers, so that adding a consumer never shifts
the draws of another one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # servers and robots draw noise without torch
    import torch


EPISODES_PER_SEED = 1_000_000
"""Width of the block of initial-state indices that one seed of an evaluation plan owns."""


def first_planned(seed: int) -> int:
    """Index of the first initial state of a seed's plan; the others follow."""
    return seed * EPISODES_PER_SEED


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream ``names`` under ``seed``; stable across machines and versions."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the named stream."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextlib.contextmanager
def first_weights(seed: int, *names: str | int) -> Iterator[None]:
    """Inside, layers take their first weights from the named stream; the caller's global generators stay as they are.

    PyTorch initialises layers from its global generator alone. Only that of the CPU is seeded, where networks are made:
    ``torch.manual_seed`` would seed those of every GPU too, and nothing puts these back.
    """
    import torch

    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive(seed, *names))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the named stream."""
    return np.random.default_rng(derive(seed, *names))
