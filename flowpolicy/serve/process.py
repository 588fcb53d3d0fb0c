"""A server as a process: signals, and a look now and then for a newer checkpoint."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from flowpolicy.core.checkpoint import newest
from flowpolicy.core.run_places import run_name
from flowpolicy.serve.arrival import PollClock
from flowpolicy.serve.model import Model
from flowpolicy.serve.server import PolicyServer
from flowpolicy.serve.server_config import ServerConfig

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another one waits for it; Python's own 5 ms is a quarter of a
robot's deadline. Threads that compete with the event loop: slow engines, and the loading of a new checkpoint."""


def serve_until_stopped(run: Path, load: Callable[[], Model], config: ServerConfig, token: str) -> None:
    """Serve until SIGTERM or SIGINT; reload on SIGHUP and when ``run`` has a newer checkpoint."""
    polls = PollClock()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(polls)) as runner:
        runner.run(_serve(run, load, config, token, polls))


async def _serve(run: Path, load: Callable[[], Model], config: ServerConfig, token: str, polls: PollClock) -> None:
    loop, stop, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    known = newest(run)
    server = PolicyServer(load(), config, token, load, polls=polls)
    sys.setswitchinterval(SWITCH_S)
    # Half a million objects of the imported libraries never become garbage: a full collection that visits them stops
    # the server for 100 ms. What comes later is small.
    gc.collect()
    gc.freeze()
    async with server.running() as port:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        sys.stdout.write(
            f"serving {run_name(run)} ({server.model.checkpoint}, engine {server.model.any_engine.name}) "
            f"at ws://{config.host}:{port}\n"
            f"latency, ms by evaluations and robots: {server.model.table.to_json()}\n{_told(server.model)}"
        )
        sys.stdout.flush()
        tasks = [asyncio.create_task(work) for work in (stop.wait(), server.died(), _reload(server, reload))]
        if config.watch_s:
            tasks.append(asyncio.create_task(_watch(run, known, config.watch_s, reload)))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
    for task in done:
        task.result()


def _told(model: Model) -> str:
    """What a policy does that takes instructions, where a robot does not say: a line, or nothing."""
    known = sum(map(len, model.any_engine.contract.spec.instructions.values()))
    if model.instruction:
        return f"instruction where a robot says none: '{model.instruction}'{', the only one' if known == 1 else ''}\n"
    return f"each request says which of {known} instructions is meant\n" if known else ""


async def _reload(server: PolicyServer, wanted: asyncio.Event) -> None:
    while True:
        await wanted.wait()
        wanted.clear()
        await server.reload()


async def _watch(run: Path, known: str, seconds: float, reload: asyncio.Event) -> None:
    """Ask for a reload when the newest checkpoint has another name."""
    while True:
        await asyncio.sleep(seconds)
        try:
            found = newest(run)
        except OSError:
            continue  # the file is being replaced, or its disk is away for a moment
        if found != known:
            known = found
            reload.set()
