"""The recorder as a process: ``python -m flowpolicy.real_robot.session.recorder_process OPTIONS``."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.drivers.priority import step_back
from flowpolicy.real_robot.session.launch import orphaned, read_options, run_process
from flowpolicy.real_robot.session.recorder import Recorder


def main() -> None:
    """Run until SIGTERM, then finish the episode under way."""
    setup, options = read_options()
    step_back()  # it copies and writes pictures
    # A flag, not an exception: one would tear the file that is just being written.
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    recorder = Recorder(SessionRings(setup.session), Path(options["folder"]), options["meta"])
    recorder.run(abandoned=lambda: told.is_set() or orphaned())
    recorder.close()


if __name__ == "__main__":
    run_process(main)
