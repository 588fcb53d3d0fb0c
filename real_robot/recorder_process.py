"""The recorder as a process: ``python -m flowpolicy.real_robot.recorder_process OPTIONS``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from flowpolicy.real_robot.launch import orphaned, read_options
from flowpolicy.real_robot.recorder import Recorder
from flowpolicy.real_robot.records import Session


def main() -> None:
    """Run until SIGTERM, then finish the episode under way."""
    setup, options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    recorder = Recorder(Session(setup.session), Path(options["folder"]), options["meta"])
    try:
        recorder.run(abandoned=orphaned)
    finally:
        recorder.close()


if __name__ == "__main__":
    main()
