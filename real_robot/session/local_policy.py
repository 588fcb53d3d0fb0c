"""A trained policy in the policy process. The only module of the robot side with torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import Contract
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.inputs import require_numbers
from flowpolicy.policy.policy import Policy


class LocalPolicy:
    """Decides in this process.

    Args:
        run: run or checkpoint folder.
        seed: of its noise.

    """

    def __init__(self, run: str, seed: int) -> None:
        torch.set_num_threads(1)
        self._policy, self._seed = Policy.load(run), seed
        self._policy.require_no_memory()
        self._generator = torch_generator(seed, "robot", 0)

    @property
    def contract(self) -> Contract:
        """What it was trained for."""
        return self._policy.contract

    @property
    def prefix(self) -> int:
        """Most committed actions that it was trained to continue."""
        return self._policy.config.prefix

    def reset(self, episode: int) -> None:
        """Begin an episode."""
        self._generator = torch_generator(self._seed, "robot", episode)

    def chunk(self, obs: dict[str, NDArray[np.float32]], committed: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """(h, a) actions that begin with the (n, a) committed ones."""
        batch = {key: torch.from_numpy(value[None]) for key, value in obs.items()}
        return self._policy.act(batch, self._generator, committed=self._commit(committed))[0].double().numpy()

    def _commit(self, committed: NDArray[np.float64] | None) -> Committed | None:
        if committed is None:
            return None
        contract, length = self.contract, len(committed)
        require_numbers("the committed actions", committed, (min(length, contract.chunk), contract.spec.action.size))
        action = torch.zeros(1, contract.chunk, contract.spec.action.size)
        action[0, :length] = torch.from_numpy(committed)
        return Committed(action, torch.tensor([length]), torch.tensor([length]))
