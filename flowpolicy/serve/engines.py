"""What a server computes with: the policy as it is, or one of its engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.spec import Contract
from flowpolicy.policy import Engine, load_engine
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.policy import Policy


class EagerEngine:
    """Calls :meth:`flowpolicy.policy.policy.Policy.act_from`; the only engine that takes committed actions.

    Args:
        policy: loaded.
        nfe: network evaluations per chunk.

    """

    name = "eager"

    def __init__(self, policy: Policy, nfe: int) -> None:
        self._policy, self.nfe = policy, nfe

    @property
    def contract(self) -> Contract:
        """The policy's."""
        return self._policy.contract

    @property
    def candidates(self) -> int:
        """Noise chunks per row."""
        return self._policy.config.candidates

    @property
    def prefix(self) -> int:
        """Most committed actions."""
        return self._policy.config.prefix

    @property
    def scaling(self) -> dict[str, np.ndarray]:
        """Offset, scale and limit (3, d) of every observation key."""
        return scaling_of(self._policy)

    def act(self, obs: dict[str, np.ndarray], noise: np.ndarray, *committed: np.ndarray) -> np.ndarray:
        """Chunks (b, h, a); see :class:`flowpolicy.serve.model.Engine`."""
        tensors = {key: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for key, value in obs.items()}
        bound = None
        if committed:
            action, length = (torch.from_numpy(value) for value in committed)
            bound = Committed(action, length, length)
        chunk: np.ndarray = self._policy.act_from(tensors, torch.from_numpy(noise), self.nfe, bound).numpy()
        return chunk


class PackagedEngine:
    """One of :mod:`flowpolicy.policy.engines`, and the scaling that a client's similarity filter wants.

    Args:
        engine: loaded.
        scaling: name -> offset, scale and limit (3, d).

    """

    def __init__(self, engine: Engine, scaling: dict[str, np.ndarray]) -> None:
        self.engine, self.scaling = engine, scaling
        self.name, self.contract = engine.name, engine.contract
        self.nfe, self.candidates = engine.nfe, engine.candidates

    def act(self, obs: dict[str, np.ndarray], noise: np.ndarray, *committed: np.ndarray) -> np.ndarray:
        """Chunks (b, h, a); nothing can be committed."""
        return self.engine.act(obs, noise)


def load_engines(
    path: Path, nfes: tuple[int, ...], threads: int, name: str = EagerEngine.name, batches: Sequence[int] = (1,)
) -> tuple[list[EagerEngine | PackagedEngine], str]:
    """Engines of the newest checkpoint of ``path``, and its name; the contract's evaluations unless ``nfes`` says.

    Raises:
        ConfigError: the engine ``name`` cannot run this policy; only 'eager' takes committed actions.

    """
    torch.set_num_threads(threads)
    folder = resolve(path)
    policy = Policy.load(folder)
    policy.require_plain_noise()
    numbers = nfes or (policy.contract.nfe,)
    if name == EagerEngine.name:
        return [EagerEngine(policy, nfe) for nfe in numbers], folder.name
    scaling = scaling_of(policy)
    loaded = [load_engine(folder, name, batches=batches, threads=threads, nfe=nfe) for nfe in numbers]
    return [PackagedEngine(engine, scaling) for engine in loaded], folder.name


def scaling_of(policy: Policy) -> dict[str, np.ndarray]:
    """Offset, scale and limit (3, d) of every observation key."""
    known = {key: policy.normalizer.observation(key) for key in policy.actor.keys}
    return {key: torch.stack([s.offset, s.scale, s.limit]).numpy() for key, s in known.items()}
