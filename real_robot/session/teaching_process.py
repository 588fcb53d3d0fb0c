"""A teaching device as a process: ``python -m flowpolicy.real_robot.session.teaching_process OPTIONS``. No torch."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.session.launch import Setup, orphaned, read_options, run_process
from flowpolicy.real_robot.teaching.devices import DeviceConfig, make_device
from flowpolicy.real_robot.teaching.teach_loop import TeachLoop


def loop_options(config: DeviceConfig) -> dict[str, Any]:
    """What the process is told."""
    return {"device": config.options()}


def make_loop(setup: Setup, session: SessionRings, options: dict[str, Any]) -> TeachLoop:
    """The loop that the options ask for."""
    config = DeviceConfig.of(options["device"])
    return TeachLoop(make_device(config, session), session, setup.limits, config.motion())


def main() -> None:
    """Run until SIGTERM."""
    setup, options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    loop = make_loop(setup, SessionRings(setup.session), options)
    try:
        while not orphaned():
            due = loop.step(time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        loop.close()


if __name__ == "__main__":
    run_process(main)
