"""Suites on Ray: every run, or company of runs, is a task; a task whose worker died goes on from its newest checkpoint.

The driver keeps the books, and the books are files: a run is done when its record is there, and begun when it has a
checkpoint. It may die at any moment; started again it sees from the files what is left.

A node that sees the suite's folder (a shared disk) works in it. One that does not works in its own cache folder, and
sends what is new to the driver whenever there is a new checkpoint (:mod:`flowpolicy.lab.ray_pieces`).
"""

from __future__ import annotations

import collections
import contextlib
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.files import cache_root, held_alone, read_object, unchanged_sha256, write_json
from flowpolicy.lab.ray_cluster import ray_cluster, versions
from flowpolicy.lab.ray_pieces import Outbox, Piece, Unpacking, cached, is_here, pieces_of
from flowpolicy.lab.suite_jobs import Company, Finished, SuiteJob, carry_out, job_from

MARK = ".suite.json"
"""File in the suite's folder with a number that nobody else has: a node that reads it there sees the same folder."""
DEATHS = 5
"""Workers that a run may lose in a row without a new checkpoint, before it counts as failed."""
_FREE = 150.0
"""Seconds that a run waits for one that still works in its folder: what Ray takes to notice that a driver is gone."""


@dataclass(frozen=True)
class OnRay:
    """A Ray cluster."""

    address: str
    """As :func:`flowpolicy.lab.ray_cluster.ray_cluster` takes it."""
    out: Path
    """The suite's folder."""
    cpus: float = 1.0
    """Cores that a run is given."""
    gpus: float = 0.0
    """GPUs; a fraction shares one."""
    at_once: int | None = None
    """Runs side by side at most; as many as the cluster has room for unless given."""
    shared: bool | None = None
    """Whether the nodes see the suite's folder; each node looks for itself unless given."""

    def carry_out(self, companies: Sequence[Company], finished: Finished) -> None:
        """As tasks of the cluster."""
        if not companies:
            return
        with ray_cluster(self.address) as ray:
            _tell_of_missing_room(ray, self.cpus, self.gpus)
            try:
                _Driver(self, ray, finished).work(companies)
            except ConnectionError as error:
                raise FlowPolicyError(
                    f"the connection to the Ray cluster was lost: {str(error).splitlines()[0][:200]}",
                    fix="run the same command again: what is done is kept, what was begun goes on",
                ) from error


class _Driver:
    """Hands runs to the cluster, takes back what they send, and hands them on where a worker died."""

    def __init__(self, place: OnRay, ray: Any, finished: Finished) -> None:
        from ray.util.queue import Queue

        self._place, self._ray, self._finished = place, ray, finished
        # On the head node: where that is gone, the cluster is.
        head = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
        self._queue = Queue(maxsize=16, actor_options=head)
        self._task = ray.remote(on_node).options(
            num_cpus=place.cpus, num_gpus=place.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        self._refs: dict[str, list[Any]] = {}
        self._deaths: collections.Counter[str] = collections.Counter()
        self._names: dict[Path, Company] = {}
        self._unpacking = Unpacking(self._is_ours)
        self._mark = _mark(place.out)
        self._versions = versions()

    def work(self, companies: Sequence[Company]) -> None:
        waiting, under_way = collections.deque(companies), dict[Any, tuple[Company, str]]()
        for company in companies:
            for job in company:
                self._names |= {job.run: company, job.record: company, job.log: company}
        while waiting or under_way:
            while waiting and len(under_way) < (self._place.at_once or 1_000):
                company = waiting.popleft()
                under_way[self._submit(company)] = (company, company[0].newest)
            ready, _ = self._ray.wait(list(under_way), num_returns=1, timeout=0.5)
            self._take()
            for ref in ready:
                company, before = under_way.pop(ref)
                if not self._ended(ref, company, before):
                    waiting.appendleft(company)

    def _submit(self, company: Company) -> Any:
        data = company[0].data
        order = {
            "jobs": [job.to_json() for job in company],
            "newest": [job.newest for job in company],
            "out": str(self._place.out.absolute()),
            "here": str(Path.cwd()),
            "mark": self._mark,
            "shared": self._place.shared,
            "data": data,
            "sha256": unchanged_sha256(Path(data)),
            "versions": self._versions,
        }
        wanted = [data, *(str(job.run) for job in company)]
        return self._task.remote(order, {name: self._refs[name] for name in wanted if name in self._refs}, self._queue)

    def _ended(self, ref: Any, company: Company, before: str) -> bool:
        """Whether a company is done with, well or not; else it has to be handed out again."""
        import ray.exceptions

        try:
            told = self._ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            reason = str(error.cause if isinstance(error.cause, FlowPolicyError) else error)
            return self._failed(company, reason)
        except ray.exceptions.RayError as error:
            return self._lost(company, before, type(error).__name__)
        if "refused" in told:
            raise FlowPolicyError(told["refused"], expected=told["expected"], fix=told["fix"])
        if "lacks" in told:
            for name in told["lacks"]:
                self._refs[name] = [self._ray.put(piece) for piece in _needed(name)]
            return False
        for job, good in zip(company, told["good"], strict=True):
            self._refs.pop(str(job.run), None)
            self._finished(job, good and job.record.exists())
        return True

    def _lost(self, company: Company, before: str, why: str) -> bool:
        first = company[0]
        for job in company:
            self._refs.pop(str(job.run), None)  # of an older state
            self._unpacking.forget(job.run)
        self._deaths[str(first)] = 1 if first.newest != before else self._deaths[str(first)] + 1
        if self._deaths[str(first)] >= DEATHS:
            return self._failed(company, f"{DEATHS} workers died in a row without a new checkpoint: {why}")
        on = f"from {first.newest}" if first.newest else "from the beginning: it had no checkpoint yet"
        sys.stderr.write(f"{first}: its worker died ({why}); it goes on elsewhere {on}\n")
        return False

    def _failed(self, company: Company, reason: str) -> bool:
        for job in company:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"{reason}\n")
            self._finished(job, False)
        return True

    def _take(self) -> None:
        """What has arrived in the queue."""
        while size := self._queue.qsize():
            for piece in self._queue.get_nowait_batch(size):
                self._unpacking.take(piece)

    def _is_ours(self, path: Path) -> bool:
        return path in self._names or any(parent in self._names for parent in path.parents)


def on_node(order: dict[str, Any], refs: dict[str, list[Any]], queue: Any) -> dict[str, Any]:
    """What a worker does: look for the data and the folder, train, evaluate.

    Args:
        order: what is to be done, in JSON values.
        refs: path on the driver's side -> pieces of its content in the object store.
        queue: takes pieces of what was made, where the driver's folder is not seen from here.

    Returns:
        ``good`` for each run; or ``lacks``, what has to be put into the object store first; or ``refused``.

    """
    import ray

    if (mine := versions()) != order["versions"]:
        return _refusal(order["versions"], mine)

    def fetch(name: str) -> Callable[[], Iterator[Piece]] | None:
        found = refs.get(name)
        return (lambda: (ray.get(ref) for ref in found)) if found is not None else None

    if Path(order["here"]).is_dir():
        os.chdir(order["here"])  # the driver's paths may be relative
    data = order["data"]
    place = Path(data) if is_here(data, order["sha256"]) else cached(Path(data).name, order["sha256"], fetch(data))
    if place is None:
        return {"lacks": [data]}
    jobs = [job_from(value) for value in order["jobs"]]
    shared = _sees(order) if order["shared"] is None else order["shared"]
    local = [job.elsewhere({data: str(place)} | ({} if shared else _inside_cache(job, order["mark"]))) for job in jobs]
    with contextlib.ExitStack() as stack:
        for one in local:
            _wait_until_free(one.run)
        if not shared:
            stale = [
                (job, one, newest)
                for job, one, newest in zip(jobs, local, order["newest"], strict=True)
                if not newest or one.newest != newest
            ]
            if lacking := [str(job.run) for job, _, newest in stale if newest and str(job.run) not in refs]:
                return {"lacks": lacking}
            for job, one, _ in stale:
                _restore(one.run, str(job.run), fetch(str(job.run)))
            for job, one in zip(jobs, local, strict=True):
                stack.enter_context(_sending(job, one, queue))
        good: dict[Path, bool] = {}
        carry_out(local, lambda job, well: good.__setitem__(job.run, well))
    return {"good": [good[one.run] for one in local]}


def _inside_cache(job: SuiteJob, mark: str) -> dict[str, str]:
    """Where a node keeps a run whose folder it does not see, and its record."""
    home = cache_root() / "runs" / mark
    record = home / "records" / job.task / job.record.name
    return {str(job.run): str(home / job.task / job.run.name), str(job.record): str(record)}


def _restore(run: Path, there: str, get: Callable[[], Iterator[Piece]] | None) -> None:
    """Make a local run folder what the driver's is: with its newest checkpoint, or nothing."""
    shutil.rmtree(run, ignore_errors=True)
    if get is None:
        return
    unpacking = Unpacking(lambda path: path.is_relative_to(run))
    for piece in get():
        unpacking.take({**piece, "path": str(run / Path(piece["path"]).relative_to(there))})


@contextlib.contextmanager
def _sending(job: SuiteJob, local: SuiteJob, queue: Any) -> Iterator[None]:
    """Send every new checkpoint while the block runs, and the rest when it ends."""
    local.record.unlink(missing_ok=True)
    names = {str(local.run): str(job.run), str(local.log): str(job.log), str(local.record): str(job.record)}
    outbox, over = Outbox(queue.put, names, local.run, local.record), threading.Event()
    outbox.mark()

    def watch() -> None:
        known = local.newest
        while not over.wait(1.0):
            if local.newest != known:
                known = local.newest
                outbox.send()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        outbox.send()


def _sees(order: dict[str, Any]) -> bool:
    with contextlib.suppress(OSError, FlowPolicyError):
        return bool(read_object(Path(order["out"]) / MARK).get("mark") == order["mark"])
    return False


def _mark(out: Path) -> str:
    path = out / MARK
    if not path.exists():
        write_json(path, {"mark": secrets.token_hex(8)})
    return str(read_object(path)["mark"])


def _needed(name: str) -> Iterator[Piece]:
    """The pieces of a training file, or of what a run folder needs to go on: its newest checkpoint and its logs."""
    path = Path(name)
    if path.is_file():
        yield from pieces_of(path)
        return
    root = path / checkpoint.FOLDER
    latest = root / checkpoint.LATEST
    old = {folder for folder in root.glob("*") if folder.name != checkpoint.newest(path)}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != ".lock" and not old & {file, *file.parents}:
            yield from pieces_of(file)
    if latest.exists():
        yield from pieces_of(latest)


def _wait_until_free(run: Path) -> None:
    """Wait for a process that still works in a run folder, such as one of a driver that died a moment ago."""
    until = time.monotonic() + _FREE
    while time.monotonic() < until:
        with contextlib.suppress(FlowPolicyError), held_alone(run, "flowpolicy suite"):
            return
        time.sleep(0.5)


def _refusal(wanted: dict[str, str], mine: dict[str, str]) -> dict[str, Any]:
    differing = [name for name in wanted if wanted[name] != mine[name]]
    return {
        "refused": f"the node {socket.gethostname()} has {', '.join(f'{name} {mine[name]}' for name in differing)}",
        "expected": f"{', '.join(f'{name} {wanted[name]}' for name in differing)}, as where the command was typed",
        "fix": "install the same versions on every node: other ones compute other bits",
    }


def _tell_of_missing_room(ray: Any, cpus: float, gpus: float) -> None:
    """A cluster may grow, so that it is no error that no node has room for a run now."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus for has in there):
        most = max(has.get("CPU", 0) for has in there), max(has.get("GPU", 0) for has in there)
        sys.stderr.write(
            f"no node of the cluster has {cpus:g} cores and {gpus:g} GPUs for a run (the most: {most[0]:g} and "
            f"{most[1]:g}): the suite waits for one\n"
        )
