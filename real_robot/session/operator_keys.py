"""Keys of the operator while a session runs in a terminal: r recovers or re-arms, q ends the session at rest."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import State

HELP = "keys: r recover or re-arm, q bring the arm to rest and end the session"


class Keys:
    """Turns keys into commands of the bridge.

    Args:
        session: rings.
        terminal: file descriptor that is read; None for no keys at all.

    """

    def __init__(self, session: SessionRings, terminal: int | None) -> None:
        self._session, self._terminal = session, terminal

    def poll(self, tick: Records) -> str:
        """Say to the bridge what was typed, if anything; returns the command. Never waits."""
        if self._terminal is None or not select.select([self._terminal], [], [], 0.0)[0]:
            return ""
        stopped = State(int(tick["state"])) in (State.FAULT, State.LOCKED)
        words = {b"r": "recover" if stopped else "rearm", b"q": "quit"}
        command = words.get(os.read(self._terminal, 1).lower(), "")
        if command:
            self._session.command(command)
        return command


@contextlib.contextmanager
def reading_keys(session: SessionRings) -> Iterator[Keys]:
    """Keys without Enter, if there is a terminal; it is left as it was."""
    if not sys.stdin.isatty():
        yield Keys(session, None)
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    sys.stderr.write(HELP + "\n")
    try:
        yield Keys(session, terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
