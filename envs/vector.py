"""Several copies of one environment, in this process or in worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowpolicy.core.errors import FlowPolicyError, SimulatorError
from flowpolicy.core.protocols import Observation, Step
from flowpolicy.core.spec import Spec


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
        """(height, width, 3) uint8 picture."""

    def close(self) -> None:
        """Free the simulator."""


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

    def render(self, slot: int) -> np.ndarray:
        """(height, width, 3) uint8 picture of one slot."""
        return self._envs[slot].render()

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
        self._workers = [_Worker(factory, len(range(first, num_envs, count))) for first in range(count)]
        try:
            self._collect({worker: worker.receive for worker in self._workers})
        except BaseException:
            self.close()
            raise

    def reset(self, indices: Sequence[int], slots: Sequence[int]) -> Observation:
        """Start the initial states ``indices`` in ``slots``; observations in the same order."""
        return stack_obs(self._call("reset", slots, [int(index) for index in indices]))

    def step(self, action: np.ndarray, slots: Sequence[int]) -> Step:
        """Step ``slots`` with ``action`` (len(slots), a); results in the same order."""
        return stack_outcomes(self._call("step", slots, list(action)))

    def render(self, slot: int) -> np.ndarray:
        """(height, width, 3) uint8 picture of one slot."""
        return self._call("render", [slot], [None])[0]

    def close(self) -> None:
        """Stop the workers; may be called twice."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> ProcessVecEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, slots: Sequence[int], arguments: Sequence[Any]) -> list[Any]:
        """One method call per slot; results in the order of ``slots``."""
        count = len(self._workers)
        orders: dict[_Worker, list[int]] = {}
        for row, slot in enumerate(slots):
            orders.setdefault(self._workers[slot % count], []).append(row)
        if len(arguments) != len(slots):
            raise SimulatorError(f"{method}: {len(arguments)} arguments for {len(slots)} slots")
        for worker, rows in orders.items():
            worker.send((method, [(slots[row] // count, arguments[row]) for row in rows]))
        replies = self._collect({worker: worker.receive for worker in orders})
        results: list[Any] = [None] * len(slots)
        for worker, rows in orders.items():
            for row, result in zip(rows, replies[worker], strict=True):
                results[row] = result
        return results

    def _collect(self, pending: dict[_Worker, Callable[[], Any]]) -> dict[_Worker, Any]:
        """Answers of all workers; the first error is raised once every pipe is drained."""
        replies, errors = {}, []
        for worker, receive in pending.items():
            try:
                replies[worker] = receive()
            except FlowPolicyError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return replies


class _Worker:
    """One process and the parent's end of its pipe."""

    def __init__(self, factory: EnvFactory, copies: int) -> None:
        # spawn: a forked copy of this process would share torch's threads and GL state.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, copies), daemon=True)
        with single_threaded():
            self._process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # a dead worker is reported by receive
            self._pipe.send(message)

    def receive(self) -> Any:
        wait([self._pipe, self._process.sentinel])
        try:
            problem, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            raise SimulatorError(
                f"an environment worker died (process {self._process.pid}, exit code {self._process.exitcode})",
                fix="negative codes are signals (-9: killed, often for lack of memory): use fewer environments; "
                "a script that creates environments needs `if __name__ == '__main__':`",
            ) from error
        if problem is not None:
            raise SimulatorError(problem[0], expected=problem[1], fix=problem[2])
        return result

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, factory: EnvFactory, copies: int) -> None:
    """A worker's life: answer messages until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    envs: list[SingleEnv] = []
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(_answer(lambda: envs.extend(factory() for _ in range(copies))))
        while True:
            method, calls = pipe.recv()
            pipe.send(_answer(lambda m=method, c=calls: [_invoke(envs[slot], m, argument) for slot, argument in c]))
    for env in envs:
        env.close()


def _invoke(env: SingleEnv, method: str, argument: Any) -> Any:
    if method == "reset":
        return env.reset(argument)
    return env.step(argument) if method == "step" else env.render()


def _answer(work: Callable[[], Any]) -> tuple[tuple[str, str, str] | None, Any]:
    """(problem, result); the problem is (what, expected, fix) in words, so that it crosses the pipe."""
    try:
        return None, work()
    except FlowPolicyError as error:
        return (error.what, error.expected, error.fix), None
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-2:]).rstrip()
        return (f"the environment raised {type(error).__name__}: {error}\n{where}", "", ""), None


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started inside use one thread each for linear algebra: there is one of them per core."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
