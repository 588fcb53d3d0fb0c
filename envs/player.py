"""A policy that plays one episode at a time, in a worker process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from flowpolicy.policy.history import ObservationHistory


class Player:
    """Loads a policy on one thread; remembers observations and executes chunks.

    Args:
        policy: checkpoint folder.

    """

    def __init__(self, policy: Path) -> None:
        import torch

        from flowpolicy.policy import Policy

        torch.set_num_threads(1)
        self.policy = Policy.load(policy)
        self.policy.require_no_memory()

    def begin(self, stream: tuple[int | str, ...], noise_scale: float, waiting: Iterable[np.ndarray] = ()) -> None:
        """Start an episode.

        Args:
            stream: seed and names of the policy's noise.
            noise_scale: factor of that noise.
            waiting: actions (a,) to execute before the policy is asked.

        """
        from flowpolicy.core.seed import torch_generator

        self.generator = torch_generator(int(stream[0]), *stream[1:])
        self.policy.noise_scale = noise_scale
        self.past, self.waiting = ObservationHistory(self.policy.contract), deque(waiting)

    def see(self, obs: Mapping[str, np.ndarray]) -> None:
        """Append an observation."""
        self.past.append(dict(obs))

    def act(self) -> np.ndarray:
        """(a,) the next action of the chunk; where there is none, the policy decides."""
        import torch

        if not self.waiting:
            obs = {key: torch.from_numpy(rows[None]).float() for key, rows in self.past.stacked().items()}
            self.waiting.extend(self.policy.act(obs, self.generator)[0, : self.policy.contract.execute].numpy())
        return self.waiting.popleft()
