"""The policy as it is, as an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.spec import Contract
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
        known = {key: self._policy.normalizer.observation(key) for key in self._policy.actor.keys}
        return {key: torch.stack([s.offset, s.scale, s.limit]).numpy() for key, s in known.items()}

    def act(self, obs: dict[str, np.ndarray], noise: np.ndarray, *committed: np.ndarray) -> np.ndarray:
        """Chunks (b, h, a); see :class:`flowpolicy.serve.model.Engine`."""
        tensors = {key: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for key, value in obs.items()}
        bound = None
        if committed:
            action, length = (torch.from_numpy(value) for value in committed)
            bound = Committed(action, length, length)
        chunk: np.ndarray = self._policy.act_from(tensors, torch.from_numpy(noise), self.nfe, bound).numpy()
        return chunk


def load_engines(path: Path, nfes: tuple[int, ...], threads: int) -> tuple[list[EagerEngine], str]:
    """Engines of the newest checkpoint of ``path``, and its name; the contract's evaluations unless ``nfes`` says."""
    torch.set_num_threads(threads)
    folder = resolve(path)
    policy = Policy.load(folder)
    return [EagerEngine(policy, nfe) for nfe in nfes or (policy.contract.nfe,)], folder.name
