"""The recorder: drains the rings of a session to disk, in its own process. The bridge never waits for it.

While an episode runs its records are appended, raw, to journals in a hidden folder: a file of fixed-size records is
whole up to the last complete one, whenever the process dies or the disk fills. When the episode ends the journals
become ``episode_0001.hdf5``, renamed into place when it is complete. Journals that a crash left behind are finished the
same way by the next recorder, or by ``flowpolicy robot salvage FOLDER``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flowpolicy.core.errors import DataError
from flowpolicy.real_robot.bridge.ring_records import FRAMES, RECORDER, WORDS, SessionRings
from flowpolicy.real_robot.bridge.shared_ring import Ring
from flowpolicy.real_robot.session.episodes import (
    INDEX,
    NothingRecordedError,
    camera_journals,
    finish_episode,
    write_index,
)

_PERIOD = 0.02


class Recorder:
    """One session's recorder.

    Args:
        session: whose rings to drain.
        folder: where episodes go.
        meta: what the files must say: see :func:`flowpolicy.real_robot.session.episodes.finish_episode`.

    """

    def __init__(self, session: SessionRings, folder: Path, meta: dict[str, Any]) -> None:
        self.session, self.folder, self.meta = session, folder, {**meta, "told": True}
        self._rings = {"ticks": session.ticks, "chunks": session.chunks, "events": session.events}
        if meta.get("device"):
            self._rings["device"] = session.device
        for name, dtype in camera_journals(self.meta).items():
            self._rings[name] = Ring(session.folder / name, dtype, FRAMES)
        self._cursors = {name: ring.count for name, ring in self._rings.items()}
        self._journals: dict[str, BinaryIO] = {}
        self._episode = 0
        self.rows = self.lost = self.finished = 0
        self.failed = ""
        """What went wrong with the disk; empty if nothing did."""
        folder.mkdir(parents=True, exist_ok=True)
        salvage(folder, lambda text: print(text, flush=True))  # noqa: T201 - the log of this process

    def drain(self) -> None:
        """Write what has arrived since the last call."""
        ticks, others = self._read("ticks"), {name: self._read(name) for name in self._rings if name != "ticks"}
        for part in np.split(ticks, np.nonzero(np.diff(ticks["episode"]))[0] + 1):
            number = int(part["episode"][0]) if len(part) else self._episode
            if number != self._episode:
                self._end(others)
                if number:
                    self._begin(number)
            if number:
                self._write("ticks", part)
        if self._episode:
            for name, records in others.items():
                self._write(name, records)
        self._report()

    def run(self, abandoned: Callable[[], bool] = lambda: False) -> None:
        """Drain until the process is told to end (SIGTERM, by the session's owner), or its owner has died."""
        while not abandoned():
            self.drain()
            time.sleep(_PERIOD)

    def close(self) -> None:
        """Finish the episode under way."""
        self.drain()
        self._end({})
        self._report()

    def _read(self, name: str) -> Any:
        records, self._cursors[name], lost = self._rings[name].read(self._cursors[name])
        self.lost += lost if name == "ticks" else 0
        return records

    def _begin(self, number: int) -> None:
        # Each episode is tried anew: one that held nothing, or met a full disk, must not cost the ones after it.
        self._episode, self.failed = number, ""
        try:
            home = self.folder / f".episode_{number:04d}"
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            (home / "meta.json").write_text(json.dumps(self.meta), encoding="utf-8")
            self._journals = {name: (home / name).open("wb", buffering=0) for name in self._rings}
        except OSError as error:
            self._fail(error)

    def _write(self, name: str, records: Any) -> None:
        if not len(records) or name not in self._journals or self.failed:
            return
        try:
            self._journals[name].write(records.tobytes())
            self.rows += len(records) if name == "ticks" else 0
        except OSError as error:
            self._fail(error)

    def _end(self, last: dict[str, Any]) -> None:
        """Finish the episode under way; ``last`` are records that belong to its end."""
        if not self._episode:
            return
        for name, records in last.items():
            self._write(name, records)
        number, self._episode = self._episode, 0
        for journal in self._journals.values():
            journal.close()
        self._journals = {}
        try:
            finish_episode(self.folder, number)
            self.finished += 1
            write_index(self.folder)
            self.failed = ""
        except (OSError, DataError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        # The journals stay as they are: they open up to the last whole record.
        self.failed = str(error) or type(error).__name__

    def _report(self) -> None:
        record = np.zeros((), RECORDER)
        record["t_mono"], record["rows"], record["lost"] = time.monotonic(), self.rows, self.lost
        record["episodes"], record["failed"] = self.finished, self.failed.encode()[:WORDS]
        self.session.recorder.write(record)


def salvage(folder: Path, tell: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Finish every episode whose recorder died; returns the files. The index is written anew from what is there.

    Args:
        folder: of the recordings.
        tell: told what could not be finished, and stays as it is.

    Raises:
        DataError: the episodes cannot be shown as one file.

    """
    made = []
    for home in sorted(folder.glob(".episode_*")):
        number = int(home.name.rpartition("_")[2])
        try:
            made.append(finish_episode(folder, number))
        except NothingRecordedError:
            shutil.rmtree(home)
        except (OSError, DataError) as error:
            tell(f"{home} was left as it is: {error}")
    if (folder / INDEX).exists() or any(folder.glob("episode_*.hdf5")):
        write_index(folder)
    return made
