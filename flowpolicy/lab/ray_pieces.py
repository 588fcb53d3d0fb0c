"""Files on their way between machines without a common disk: in pieces, through Ray's object store.

To a node: what it lacks is put into the store once, in pieces of 8 MiB, and every node that lacks it fetches them. The
store itself puts on disk what does not fit in memory. From a node: pieces wait in a short queue, so that a slow driver
holds the node up and no memory fills.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import DataError
from flowpolicy.core.files import cache_root, held_alone, replacing, require_space, sha256, unchanged_sha256

PIECE = 8 << 20
"""Bytes."""
Piece = dict[str, Any]
"""``path`` of the whole file, ``at`` its first byte, ``bytes``, and whether it is the ``last`` of the file."""


def pieces_of(path: Path, name: str = "") -> Iterator[Piece]:
    """The pieces of a file, as it is now.

    Args:
        path: where it lies.
        name: what it is to be called on the other side; its path unless given.

    """
    at = 0
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        while True:
            block = stream.read(min(PIECE, size - at))
            last = at + len(block) >= size or not block
            yield {"path": name or str(path), "at": at, "bytes": block, "last": last}
            at += len(block)
            if last:
                return


def cached(name: str, sha: str, get: Callable[[], Iterable[Piece]] | None) -> Path | None:
    """A file by its content: CACHE/data/SHA256/NAME, whole or absent; several processes of a node fetch it once.

    Args:
        name: of the file; loaders go by it.
        sha: hexadecimal SHA-256 of its content.
        get: gives its pieces; None where they are not at hand yet.

    Returns:
        Where it lies, or None if it is not there and cannot be fetched.

    Raises:
        DataError: what was fetched has another content.

    """
    place = cache_root() / "data" / sha / name
    if place.exists():
        return place
    if get is None:
        return None
    with held_alone(place.parent, "flowpolicy suite", wait=True):
        if not place.exists():
            with replacing(place) as temporary, temporary.open("wb") as stream:
                for piece in get():
                    require_space(place.parent, len(piece["bytes"]))
                    stream.write(piece["bytes"])
                stream.flush()
                if (found := sha256(temporary)) != sha:
                    raise DataError(f"{name} arrived with the SHA-256 {found[:12]}..., was {sha[:12]}...")
    return place


def is_here(path: str, sha: str) -> bool:
    """Whether the file with this content lies at this path of this machine."""
    return Path(path).is_file() and unchanged_sha256(Path(path)) == sha


class Unpacking:
    """Writes files from their pieces: each is put in place when its last piece is there, whole or absent."""

    def __init__(self, allowed: Callable[[Path], bool]) -> None:
        self._allowed = allowed
        self._open: dict[tuple[str, Path], Path] = {}

    def take(self, piece: Piece) -> None:
        """Take the next piece of a file, or a list of checkpoints that alone are kept (``keep``) in a run."""
        path = Path(piece["path"])
        if not self._allowed(path):
            raise DataError(f"a node sent {path}, which belongs to no run of this suite")
        if "keep" in piece:
            for folder in (path / checkpoint.FOLDER).glob("step_*"):
                if folder.name not in piece["keep"]:
                    shutil.rmtree(folder)
            return
        key = piece.get("by", ""), path
        if piece["at"] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[key] = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary = self._open.get(key)
        if temporary is None:
            return  # of a file whose beginning was dropped
        with temporary.open("ab") as stream:
            stream.write(piece["bytes"])
        if piece["last"]:
            with replacing(path) as final:
                temporary.replace(final)
            del self._open[key]

    def forget(self, run: Path) -> None:
        """Drop what has begun of a run's files: whoever sent it is dead."""
        for key in [key for key in self._open if key[1].is_relative_to(run)]:
            self._open.pop(key).unlink(missing_ok=True)


class Outbox:
    """Sends the files of a run to the driver: everything that is new, then ``LATEST``, then the record.

    A driver that dies at any moment so has a whole checkpoint, and a record only with the run that it is of.

    Args:
        put: sends a piece, and waits while the queue is full.
        names: local path -> path on the driver's side, of run folder, log and record.
        run: the local run folder.
        record: the local record, which may not be there yet.

    """

    def __init__(self, put: Callable[[Piece], None], names: dict[str, str], run: Path, record: Path) -> None:
        self._names, self._run, self._record = names, run, record
        sender = uuid.uuid4().hex
        self._put = lambda piece: put({**piece, "by": sender})
        self._sent: dict[Path, tuple[int, int]] = {}

    def send(self) -> None:
        """Send what is new, as far as it stays in place meanwhile."""
        latest = self._run / checkpoint.FOLDER / checkpoint.LATEST
        newest = checkpoint.newest(self._run)
        try:
            for path in self._files():
                if path not in (latest, self._record):
                    self._send(path)
            if newest and newest == checkpoint.newest(self._run):  # else the files of a newer one may be missing
                self._send(latest)
                kept = [folder.name for folder in latest.parent.glob("step_*")]
                self._put({"path": self._names[str(self._run)], "keep": [*kept, newest]})
            if self._record.exists():
                self._send(self._record)
        except FileNotFoundError:
            return  # an old checkpoint went while it was read: next time

    def mark(self) -> None:
        """Take what is there as sent."""
        self._sent = {path: _version(path) for path in self._files()}

    def _files(self) -> list[Path]:
        inside = [path for path in sorted(self._run.rglob("*")) if path.is_file()]
        beside = [Path(path) for path in self._names if Path(path) != self._run and Path(path).is_file()]
        hidden = [path for path in inside if any(part.startswith(".") for part in path.relative_to(self._run).parts)]
        return [path for path in inside if path not in hidden] + beside

    def _send(self, path: Path) -> None:
        version = _version(path)
        if self._sent.get(path) == version:
            return
        below = path.is_relative_to(self._run)
        name = str(Path(self._names[str(self._run)]) / path.relative_to(self._run)) if below else self._names[str(path)]
        for piece in pieces_of(path, name):
            self._put(piece)
        self._sent[path] = version


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
