"""Results of long work, kept as they come, so that a stopped command goes on where it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import DataError, FlowPolicyError


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
        self._head = json.dumps(work, sort_keys=True) + "\n"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if whole and whole[0].decode(errors="replace") != self._head:
            raise DataError(
                f"{path} holds results of other work than this",
                expected="the command that was stopped, with the same options and the same files",
                fix=f"repeat that command, or delete {path} to begin anew",
            )
        try:
            self.entries: list[Any] = [json.loads(line) for line in whole[1:]]
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}", fix=f"delete {path} to begin anew") from error
        self._whole = sum(map(len, whole))

    def append(self, entry: Any) -> None:
        """Keep one more result."""
        text = ("" if self._whole else self._head) + json.dumps(entry) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.truncate(self._whole)
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise FlowPolicyError(
                    f"no space left on the disk while writing {self.path}",
                    fix=f"free some space and run the command again; its first {len(self.entries)} results are kept",
                ) from error
            raise
        self._whole += len(text.encode())
        self.entries.append(entry)
