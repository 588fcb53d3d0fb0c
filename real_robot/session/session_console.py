"""What the operator sees while the robot runs: one line per half second, in place on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.cameras.camera_watch import CameraWatch

_TERMINAL_PERIOD, _FILE_PERIOD = 0.5, 5.0


class ConsoleView:
    """Follows a session's ticks, events and cameras.

    Args:
        session: rings.
        cameras: watches over the cameras, whose health is shown.

    """

    def __init__(self, session: SessionRings, cameras: Iterable[CameraWatch] = ()) -> None:
        self._session, self._live = session, sys.stderr.isatty()
        self._cameras, self._complained = list(cameras), dict[str, float]()
        self._ticks, self._events = session.ticks.count, session.events.count
        self._kept: list[NDArray[Any]] = []
        self._shown = 0.0

    def watch(self, tick: Records) -> None:
        """Show the newest state when it is time, and every event."""
        records, self._ticks, _ = self._session.ticks.read(self._ticks)
        self._kept.append(records)
        self._show_events()
        now = float(tick["t_mono"])
        self._look(tick, now)
        if now - self._shown >= (_TERMINAL_PERIOD if self._live else _FILE_PERIOD):
            self._shown = now
            recent = np.concatenate(self._kept[-25:])
            end = "\r" if self._live else "\n"
            line = status_line(tick, recent, self._session.recorder.latest())
            line += "".join(f"  {camera.line(now)}" for camera in self._cameras)
            sys.stderr.write(f"{line:<118}{end}")
            sys.stderr.flush()

    @property
    def ticks(self) -> NDArray[Any]:
        """Every tick that was seen."""
        return np.concatenate(self._kept) if self._kept else self._session.ticks.read(self._ticks)[0]

    def _look(self, tick: Records, now: float) -> None:
        """Say what is wrong with a camera, at most once a second."""
        for camera in self._cameras:
            camera.look(tick["q"])
            trouble = camera.trouble(now, tick["q"])
            if trouble and now - self._complained.get(camera.name, -1.0) >= 1.0:
                self._complained[camera.name] = now
                sys.stderr.write(f"{'warning':>9}  {trouble:<107}\n")

    def _show_events(self) -> None:
        records, self._events, _ = self._session.events.read(self._events)
        for record in records:
            kind, text = bytes(record["kind"]).decode(), bytes(record["text"]).decode()
            if kind != "episode":
                sys.stderr.write(f"{kind:>9}  {text:<107}\n")


def status_line(tick: Records, recent: NDArray[Any], recorder: Records | None) -> str:
    """State, lateness, rows in hand, clipped and rejected actions, missed decisions, command success rate."""
    late = 1e3 * float(np.percentile(recent["lateness"], 99)) if len(recent) else 0.0
    parts = [
        f"{State(int(tick['state'])).name:<8}",
        f"late p99 {late:5.2f} ms",
        f"rows {int(tick['rows_left']):2d}",
        f"speed {float(tick['speed']):.2f}",
        f"clipped {int(tick['clipped'])}",
        f"rejected {int(tick['rejected'])}",
        f"missed {int(tick['missed'])}",
        f"success {100 * float(tick['success_rate']):.0f} %",
    ]
    if recorder is not None:
        failed = recorder["failed"].item().decode()
        parts.append(f"NOT RECORDING: {failed}" if failed else f"lost {int(recorder['lost'])}")
    return "  ".join(parts)
