"""Download a published file into the cache folder: pinned by hash, resumed where it broke off, whole or absent."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import cache_root, flush, sha256
from flowpolicy.data.catalogue import Published

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole file (0 while unknown)."""

_BLOCK = 1 << 16
_BROKEN = (OSError, http.client.HTTPException)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/flowpolicy/datasets``, or the same under ``~/.cache``."""
    return cache_root() / "datasets"


def fetch(
    entry: Published,
    folder: Path | None = None,
    *,
    expected_sha256: str = "",
    progress: Progress | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> Path:
    """Path of a published file, downloaded unless it is there already.

    What has arrived waits in ``<file>.part`` when a connection breaks or the process is killed; the next attempt,
    or the next call, asks the server for the rest. The file gets its name when its hash is the expected one.
    A file that was put in place by hand is taken when its hash is right, or when none is known.

    Args:
        entry: what to download.
        folder: where to; default :func:`cache_folder`.
        expected_sha256: the hash, where the entry has none.
        progress: told about every block.
        attempts: connections to try in a row without a byte of progress.
        timeout: seconds without a byte after which a connection counts as broken.
        pause: seconds before the second attempt; doubles with every further one.

    Raises:
        DataError: no network, no such file, another hash, or no hash at all; says where to put the file by hand.

    """
    target = (folder or cache_folder()) / entry.file
    expected = _expected_hash(entry, expected_sha256)
    if target.exists():
        _require_hash(target, expected, entry, remove=False)
        return target
    if not expected:
        raise DataError(
            f"the hash of {entry.name} is not pinned, so a download could not be checked",
            fix=f"pass its SHA-256 with --sha256, or download {entry.url} yourself and put it at {target}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    download_part(entry, part, target, progress, attempts=attempts, timeout=timeout, pause=pause)
    _require_hash(part, expected, entry, remove=True)
    flush(part)
    part.replace(target)
    flush(target.parent)
    return target


def _expected_hash(entry: Published, stated: str) -> str:
    stated = stated.lower()
    if entry.sha256 and stated and stated != entry.sha256:
        raise DataError(
            f"another SHA-256 is pinned for {entry.name} than the one given ({stated})",
            expected=entry.sha256,
            fix="leave --sha256 out",
        )
    return entry.sha256 or stated


def download_part(
    entry: Published,
    part: Path,
    target: Path,
    progress: Progress | None,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fill ``part``; connections that break are tried again as long as some bytes arrive or attempts remain.

    Args:
        entry: name and place of the file.
        part: what has arrived; appended to.
        target: where the whole file will lie, for errors.
        progress: told about every block.
        attempts: connections to try in a row without a byte of progress.
        timeout: seconds without a byte after which a connection counts as broken.
        pause: seconds before the second attempt; doubles with every further one.
        headers: of the requests.

    """
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _append(entry.url, part, progress, timeout, headers or {})
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing left to send: the part is complete, or not ours
                return
            if error.code < 500:
                raise _unreachable(entry, target, error) from error
            problem: Exception = error
        except _BROKEN as error:
            problem = error
        arrived = part.stat().st_size if part.exists() else 0
        failures = 1 if arrived > before else failures + 1
        if failures >= attempts:
            raise _unreachable(entry, target, problem) from problem
        time.sleep(pause * 2 ** (failures - 1))


def _append(url: str, part: Path, progress: Progress | None, timeout: float, headers: Mapping[str, str]) -> None:
    """One connection: append what the server sends from the end of ``part`` on."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={**headers, **({"Range": f"bytes={have}-"} if have else {})})  # noqa: S310
    with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310  urls stand in the catalogue
        resumed = response.status == 206 and _first_byte(response) == have
        if not resumed:  # the server begins at the beginning, and so do we
            have = 0
        length = int(response.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        with part.open("ab" if resumed else "wb") as stream:
            while block := response.read1(_BLOCK):
                stream.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
        if total and have < total:
            raise ConnectionError(f"the connection closed after {have} of {total} bytes")


def _first_byte(response: Any) -> int:
    """Where a partial answer begins: ``bytes 100-199/200`` begins at 100; -1 when it does not say."""
    words = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")
    return int(words[0]) if words[0].isdigit() else -1


def _require_hash(path: Path, expected: str, entry: Published, *, remove: bool) -> None:
    if not expected:
        return
    found = sha256(path)
    if found == expected:
        return
    if remove:
        path.unlink()
    raise DataError(
        f"{path.name} has another content than expected (SHA-256 {found})",
        expected=expected,
        fix="the download was removed; try again, and if it happens again the server's file has changed"
        if remove
        else f"remove {path} and download {entry.name} again",
    )


def _unreachable(entry: Published, target: Path, problem: Exception) -> DataError:
    code = f"{problem.code} " if isinstance(problem, urllib.error.HTTPError) else ""
    reason = f"{code}{getattr(problem, 'reason', problem)}"
    return DataError(
        f"{entry.name} cannot be downloaded from {entry.url}: {reason}",
        fix=f"on a machine with a network download it, and put it at {target}; or generate data with "
        "`flowpolicy data make`",
    )
