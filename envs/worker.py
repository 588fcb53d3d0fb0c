"""Worker processes that hold a simulator and answer method calls over a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from flowpolicy.core.errors import FlowPolicyError, SimulatorError


class Worker:
    """A process that holds one object and calls its methods.

    The process ends with its parent, however that ends, because its pipe closes.

    Args:
        factory: creates the object, inside the process; it must be picklable.
        warns: show its warnings; of several workers that do the same, one should.

    """

    def __init__(self, factory: Callable[[], Any], warns: bool = True) -> None:
        # spawn: a forked copy of this process would share torch's threads and the state of OpenGL.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, warns), daemon=True)
        with _single_threaded():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    def send(self, method: str, *arguments: Any) -> None:
        """Start a method call; :meth:`receive` returns its result."""
        with contextlib.suppress(OSError):  # a dead worker is reported by receive
            self.pipe.send((method, arguments))

    def receive(self) -> Any:
        """The result of the oldest call not yet received.

        Raises:
            SimulatorError: when the call raised, or the process died.

        """
        wait([self.pipe, self._process.sentinel])
        try:
            problem, result = self.pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            raise SimulatorError(
                f"a simulator process died (process {self._process.pid}, exit code {self._process.exitcode})",
                fix="a negative code is a signal (-9: killed, often for lack of memory: use fewer environments); "
                "a script that creates environments needs `if __name__ == '__main__':`",
            ) from error
        if problem is not None:
            raise SimulatorError(problem[0], expected=problem[1], fix=problem[2])
        return result

    def stop(self) -> None:
        """End the process; may be called twice."""
        self.pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def start_workers(factories: Sequence[Callable[[], Any]]) -> list[Worker]:
    """Start one worker per factory, all at the same time, and wait until every object exists."""
    workers = [Worker(factory, warns=number == 0) for number, factory in enumerate(factories)]
    try:
        collect(workers)
    except BaseException:
        for worker in workers:
            worker.stop()
        raise
    return workers


def collect(workers: Iterable[Worker]) -> dict[Worker, Any]:
    """One result of each worker; the first error is raised once every pipe is drained."""
    replies: dict[Worker, Any] = {}
    errors = []
    for worker in workers:
        try:
            replies[worker] = worker.receive()
        except SimulatorError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return replies


def in_order(
    create: Callable[[], Any],
    method: str,
    calls: Sequence[tuple[Any, ...]],
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Any]:
    """Results of ``method(*call)`` in the order of ``calls``, computed by worker processes.

    Args:
        create: makes the object whose method is called, once per worker.
        method: its name.
        calls: arguments; whichever worker is free takes the next.
        workers: number of processes, one per core unless given; 0 works in this one.
        progress: called with the number of calls whose results were taken.

    """
    count = min(len(calls), len(os.sched_getaffinity(0)) if workers is None else workers)
    for done, result in enumerate(_results(create, method, calls, count), 1):
        yield result
        if progress is not None:
            progress(done)


def _results(create: Callable[[], Any], method: str, calls: Sequence[tuple[Any, ...]], count: int) -> Iterator[Any]:
    if count == 0:
        held = create() if calls else None
        yield from (getattr(held, method)(*call) for call in calls)
        return
    workers = start_workers([create] * count)
    try:
        pending: dict[Worker, int] = {}
        finished: dict[int, Any] = {}
        following = 0
        for index, call in enumerate(calls):
            worker = workers[index] if index < count else _free(pending, finished)
            worker.send(method, *call)
            pending[worker] = index
            while following in finished:
                yield finished.pop(following)
                following += 1
        while pending:
            _free(pending, finished)
            while following in finished:
                yield finished.pop(following)
                following += 1
    finally:
        for worker in workers:
            worker.stop()


def _free(pending: dict[Worker, int], finished: dict[int, Any]) -> Worker:
    """Wait for a worker to finish, file its result, and return it."""
    ready = wait([worker.pipe for worker in pending])  # the pipe of a dead worker is ready too
    worker = next(worker for worker in pending if worker.pipe in ready)
    finished[pending.pop(worker)] = worker.receive()
    return worker


def _serve(pipe: Connection, factory: Callable[[], Any], warns: bool) -> None:
    """A worker's life: create the object, answer calls until the pipe closes."""
    if not warns:
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        problem, held = _answer(factory)
        pipe.send((problem, None))
        while problem is None:
            method, arguments = pipe.recv()
            pipe.send(_answer(getattr(held, method), *arguments))


def _answer(work: Callable[..., Any], *arguments: Any) -> tuple[tuple[str, str, str] | None, Any]:
    """(problem, result); the problem is (what, expected, fix) in words, so that it crosses the pipe."""
    try:
        return None, work(*arguments)
    except FlowPolicyError as error:
        return (error.what, error.expected, error.fix), None
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-2:]).rstrip()
        return (f"the simulator raised {type(error).__name__}: {error}\n{where}", "", ""), None


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started inside use one thread each, also to draw pictures: there is one of them per core."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
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
