"""Results of long work, kept as they come, so that a stopped command goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import naming_full_disk


class Journal:
    """A file of JSON lines: first what the work is, then one result a line, each flushed to the disk.

    A line that a kill or a full disk tore is dropped when the file is opened again. Whoever has stored what the results
    were for deletes the file.

    Args:
        path: the file; made when the first result comes.
        work: JSON values that decide every result.

    Raises:
        DataError: the file holds results of other work, or is damaged.

    """

    def __init__(self, path: Path, work: Mapping[str, Any]) -> None:
        self.path = path
        self._head = json.dumps(work, sort_keys=True).encode() + b"\n"
        content = path.read_bytes() if path.exists() else b""
        if not content.startswith(self._head) and not self._head.startswith(content):
            raise DataError(
                f"{path} holds results of other work than this",
                expected="the command that was stopped, with the same options and the same files",
                fix=f"repeat that command, or delete {path} to begin anew",
            )
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self.entries: list[Any] = [json.loads(line) for line in whole.splitlines()[1:]]
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}", fix=f"delete {path} to begin anew") from error
        self._size = len(whole)

    def append(self, entry: Any) -> None:
        """Keep one more result."""
        line = (b"" if self._size else self._head) + json.dumps(entry).encode() + b"\n"
        with naming_full_disk(self.path, f"its first {len(self.entries)} results are kept"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.truncate(self._size)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        self._size += len(line)
        self.entries.append(entry)
