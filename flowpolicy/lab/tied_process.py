"""A ``flowpolicy`` command in a process of its own, which ends when whoever started it does, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_TIED = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG: Linux tells the death of the parent so
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
del sys.argv[1]
from flowpolicy.cli import main
main()
"""
"""A run that outlived its suite would go on writing to a folder that somebody else has gone on with meanwhile."""


def start_tied(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command. Killed on the way, even by SIGKILL, this process takes it with it on Linux.

    Args:
        words: after ``flowpolicy``.
        log: file that what it says is added to.

    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        command = [sys.executable, "-c", _TIED, str(os.getpid()), *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)


def run_tied(words: Sequence[str], log: Path) -> bool:
    """:func:`start_tied` to its end; True if it went well."""
    with start_tied(words, log) as process:
        try:
            return not process.wait()
        except BaseException:
            process.kill()
            raise
