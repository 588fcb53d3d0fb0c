"""Keys of a person while a session runs in a terminal: r recovers or re-arms, q ends the session at rest.

Where a person teaches or judges, other keys mean something too: whoever asks for them gets them.
"""

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

    @property
    def attended(self) -> bool:
        """Whether there is somebody who can be asked."""
        return self._terminal is not None

    def poll(self, tick: Records) -> str:
        """Say to the bridge what was typed, if anything; returns the command. Never waits."""
        command = self._command(self._read(), tick)
        if command:
            self._session.command(command)
        return command

    def typed(self, tick: Records | None) -> bytes:
        """The key that was typed, in small letters; empty if none. Never waits.

        ``r`` is said to the bridge too. ``q`` is not: whoever asks ends the session.
        """
        key = self._read()
        if key == b"r" and tick is not None:
            self._session.command(self._command(key, tick))
        return key

    def _read(self) -> bytes:
        if self._terminal is None or not select.select([self._terminal], [], [], 0.0)[0]:
            return b""
        return os.read(self._terminal, 1).lower()

    def _command(self, key: bytes, tick: Records) -> str:
        stopped = State(int(tick["state"])) in (State.FAULT, State.LOCKED)
        return {b"r": "recover" if stopped else "rearm", b"q": "quit"}.get(key, "")


@contextlib.contextmanager
def reading_keys(session: SessionRings, told: str = HELP) -> Iterator[Keys]:
    """Keys without Enter, if there is a terminal; it is left as it was. ``told`` is shown first."""
    if not sys.stdin.isatty():
        yield Keys(session, None)
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    sys.stderr.write(told + "\n")
    try:
        yield Keys(session, terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
