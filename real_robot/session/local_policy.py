"""A trained policy in the policy process, computed by an engine as the policy server's is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import Contract
from flowpolicy.policy.engines import ENGINES, load_engine
from flowpolicy.policy.inputs import require_numbers

_COMPILED = ("aotinductor", "compile", "cuda_graph")
"""Engines that take a minute to build: not what 'auto' measures while a robot waits."""


class LocalPolicy:
    """Decides in this process.

    Args:
        run: run or checkpoint folder.
        seed: of its noise.
        engine: one of :data:`flowpolicy.policy.engines.ENGINES`, or 'auto': the fastest of those that are ready within
            seconds.
        note: told which engine it is.

    Raises:
        ConfigError: the engine cannot run this policy.

    """

    def __init__(
        self, run: str, seed: int, engine: str = "auto", note: Callable[[str], None] = lambda text: None
    ) -> None:
        quick = [name for name in ENGINES if name not in _COMPILED]
        self._engine, self._seed = load_engine(run, engine, among=quick), seed
        self._rng = numpy_generator(seed, "robot", 0)
        seen = ", ".join(
            f"{name} {1e3 * found:.2f} ms" if isinstance(found, float) else f"{name}: {found}"
            for name, found in self._engine.measured.items()
        )
        note(f"engine '{self._engine.name}', ready after {self._engine.load_s:.1f} s{seen and f'; {seen}'}")

    @property
    def contract(self) -> Contract:
        """What it was trained for."""
        return self._engine.contract

    @property
    def prefix(self) -> int:
        """Most committed actions that it was trained to continue."""
        return self._engine.prefix

    def reset(self, episode: int) -> None:
        """Begin an episode."""
        self._rng = numpy_generator(self._seed, "robot", episode)

    def chunk(self, obs: dict[str, NDArray[np.float32]], committed: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """(h, a) actions that begin with the (n, a) committed ones."""
        batch = {key: value[None] for key, value in obs.items()}
        told = () if committed is None else self._commit(committed)
        return self._engine.act(batch, self._engine.noise(1, self._rng), *told)[0].astype(np.float64)

    def _commit(self, committed: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        contract, length = self.contract, len(committed)
        require_numbers("the committed actions", committed, (min(length, contract.chunk), contract.spec.action.size))
        action = np.zeros((1, contract.chunk, contract.spec.action.size), np.float32)
        action[0, :length] = committed
        return action, np.array([length])
