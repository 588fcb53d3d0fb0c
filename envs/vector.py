"""Several copies of one environment, in this process or in worker processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowpolicy.core.errors import SimulatorError
from flowpolicy.core.protocols import Observation, Step
from flowpolicy.core.spec import Spec
from flowpolicy.envs.worker import Worker, collect, start_workers


class Outcome(NamedTuple):
    """What one step of one environment returns."""

    obs: dict[str, np.ndarray]
    """Observation after the step, name -> (*shape)."""
    reward: float
    terminated: bool
    truncated: bool
    success: bool


class SingleEnv(Protocol):
    """One copy of an environment; the adapters of ``envs/`` implement it."""

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start initial state ``index``, the same bits whatever this copy did before."""

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action (a,) in environment units."""

    def render(self) -> np.ndarray:
        """(height, width, 3) uint8 picture for people."""

    def close(self) -> None:
        """Free the simulator."""


class SeeingEnv(SingleEnv, Protocol):
    """One copy of an environment with cameras; what they see is no part of what ``step`` returns."""

    def look(self) -> dict[str, np.ndarray]:
        """Pictures of this moment, key -> (height, width, 3) uint8."""


EnvFactory = Callable[[], SingleEnv]
"""Creates one copy. Crosses a process boundary, so it must be picklable: a dataclass method or a partial."""


class SerialVecEnv:
    """All slots in this process: for environments whose step costs less than a message to a worker."""

    def __init__(self, spec: Spec, factory: EnvFactory, num_envs: int) -> None:
        self.spec, self.num_envs = spec, num_envs
        self._envs = [factory() for _ in range(num_envs)]

    def reset(self, indices: Sequence[int], slots: Sequence[int]) -> Observation:
        """Start the initial states ``indices`` in ``slots``; observations in the same order."""
        return stack_obs([self._envs[slot].reset(index) for slot, index in zip(slots, indices, strict=True)])

    def step(self, action: np.ndarray, slots: Sequence[int]) -> Step:
        """Step ``slots`` with ``action`` (len(slots), a); results in the same order."""
        return stack_outcomes([self._envs[slot].step(row) for slot, row in zip(slots, action, strict=True)])

    def look(self, slots: Sequence[int]) -> Observation:
        """Pictures that the cameras of ``slots`` take now; in the same order."""
        return stack_obs([_look(self._envs[slot]) for slot in slots])

    def render(self, slot: int) -> np.ndarray:
        """(height, width, 3) uint8 picture of one slot."""
        return self._envs[slot].render()

    @property
    def simulation(self) -> str:
        """How the simulator is stepped, where there is a choice; empty where there is none."""
        return _simulation(self._envs[0])

    def close(self) -> None:
        """Free the simulators."""
        for env in self._envs:
            env.close()

    def __enter__(self) -> SerialVecEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessVecEnv:
    """Slots dealt to worker processes, one batch of messages per step.

    A worker that raises or dies surfaces as an error of the call under way. Workers end with their
    parent, however it ends: their pipe closes.

    Args:
        spec: what the environment speaks.
        factory: creates one copy, inside the worker.
        num_envs: number of slots; slot s lives in worker s modulo the number of workers.
        num_workers: number of processes; default one per core, at most one per slot.

    Raises:
        SimulatorError: when a worker cannot create its environments, raises, or dies.

    """

    def __init__(self, spec: Spec, factory: EnvFactory, num_envs: int, num_workers: int | None = None) -> None:
        self.spec, self.num_envs = spec, num_envs
        count = min(num_envs, num_workers or len(os.sched_getaffinity(0)))
        shares = [len(range(first, num_envs, count)) for first in range(count)]
        self.workers = start_workers([functools.partial(_Slots, factory, share) for share in shares])

    def reset(self, indices: Sequence[int], slots: Sequence[int]) -> Observation:
        """Start the initial states ``indices`` in ``slots``; observations in the same order."""
        return stack_obs(self._call("reset", slots, [int(index) for index in indices]))

    def step(self, action: np.ndarray, slots: Sequence[int]) -> Step:
        """Step ``slots`` with ``action`` (len(slots), a); results in the same order."""
        return stack_outcomes(self._call("step", slots, list(action)))

    def look(self, slots: Sequence[int]) -> Observation:
        """Pictures that the cameras of ``slots`` take now; in the same order."""
        return stack_obs(self._call("look", slots, [None] * len(slots)))

    def render(self, slot: int) -> np.ndarray:
        """(height, width, 3) uint8 picture of one slot."""
        return self._call("render", [slot], [None])[0]

    @property
    def simulation(self) -> str:
        """How the simulator is stepped, where there is a choice; empty where there is none."""
        return str(self._call("simulation", [0], [None])[0])

    def close(self) -> None:
        """Stop the workers; may be called twice."""
        for worker in self.workers:
            worker.stop()

    def __enter__(self) -> ProcessVecEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, slots: Sequence[int], arguments: Sequence[Any]) -> list[Any]:
        """One method call per slot; results in the order of ``slots``."""
        if len(arguments) != len(slots):
            raise SimulatorError(f"{method}: {len(arguments)} rows for {len(slots)} slots")
        count = len(self.workers)
        rows: dict[Worker, list[int]] = {}
        for row, slot in enumerate(slots):
            rows.setdefault(self.workers[slot % count], []).append(row)
        for worker, mine in rows.items():
            worker.send(method, [(slots[row] // count, arguments[row]) for row in mine])
        results: list[Any] = [None] * len(slots)
        for worker, replies in collect(rows).items():
            for row, reply in zip(rows[worker], replies, strict=True):
                results[row] = reply
        return results


class _Slots:
    """The copies of one worker; lives in the worker process."""

    def __init__(self, factory: EnvFactory, copies: int) -> None:
        self._envs = [factory() for _ in range(copies)]

    def reset(self, calls: Sequence[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
        return [self._envs[copy].reset(index) for copy, index in calls]

    def step(self, calls: Sequence[tuple[int, np.ndarray]]) -> list[Outcome]:
        return [self._envs[copy].step(action) for copy, action in calls]

    def look(self, calls: Sequence[tuple[int, None]]) -> list[dict[str, np.ndarray]]:
        return [_look(self._envs[copy]) for copy, _ in calls]

    def render(self, calls: Sequence[tuple[int, None]]) -> list[np.ndarray]:
        return [self._envs[copy].render() for copy, _ in calls]

    def simulation(self, calls: Sequence[tuple[int, None]]) -> list[str]:
        return [_simulation(self._envs[copy]) for copy, _ in calls]


def _simulation(env: SingleEnv) -> str:
    return getattr(env, "simulation", "")


def _look(env: SingleEnv) -> dict[str, np.ndarray]:
    seeing: SeeingEnv = env  # type: ignore[assignment]  # only those with pictures in their spec are asked
    return seeing.look()


def stack_obs(rows: Sequence[dict[str, np.ndarray]]) -> Observation:
    """Observations of single environments -> name -> (n, *shape)."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def stack_outcomes(rows: Sequence[Outcome]) -> Step:
    """Outcomes of single environments -> one :class:`Step`."""
    return Step(
        obs=stack_obs([row.obs for row in rows]),
        reward=np.array([row.reward for row in rows], dtype=np.float64),
        terminated=np.array([row.terminated for row in rows], dtype=bool),
        truncated=np.array([row.truncated for row in rows], dtype=bool),
        success=np.array([row.success for row in rows], dtype=bool),
    )
