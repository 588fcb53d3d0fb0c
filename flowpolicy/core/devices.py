"""Where tensors live, by the name that a user gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from flowpolicy.core.errors import ConfigError


def find_device(name: torch.device | str) -> torch.device:
    """The device called ``name``, which this machine has.

    Raises:
        ConfigError: no device is called so, or this machine has none; names ``--device``.

    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device '{name}' does not exist", expected=_known()) from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        why = f"sees {torch.cuda.device_count()} CUDA devices" if torch.version.cuda else "is a build without CUDA"
        raise ConfigError(
            f"--device {device}: this PyTorch ({torch.__version__}) {why}",
            expected=_known(),
            fix="leave --device out, or install a driver and a PyTorch that fit the GPU",
        )
    if device.type not in ("cpu", "cuda", "meta"):
        raise ConfigError(f"--device {device} is not supported", expected=_known())
    return device


Precision = Literal["fp32", "tf32", "bf16"]
"""Numbers in which matrix products are computed; weights, sums and everything else stay float32."""


@contextlib.contextmanager
def multiplying(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Inside, matrix products on ``device`` are computed in ``precision``, those of gradients too."""
    place = torch.device(device)
    if precision == "bf16":
        # Without the cache: a weight that was converted where no gradient is taken would be without one afterwards.
        with torch.autocast(place.type, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32" and place.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    else:
        yield


def exactly(device: torch.device | str) -> torch.autocast:
    """A context in which bfloat16 is not used: for what differences and derivatives of products decide."""
    return torch.autocast(torch.device(device).type, enabled=False)


def settle(device: torch.device | str) -> None:
    """Wait until a device has done what it was given; a CPU has when a call returns. For clocks, never in a loop."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def has_room(device: torch.device | str, size: int) -> bool:
    """Whether a GPU has ``size`` bytes to spare now; False of a CPU, whose memory others share."""
    place = torch.device(device)
    return place.type == "cuda" and size <= torch.cuda.mem_get_info(place)[0]


def _known() -> str:
    return ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
