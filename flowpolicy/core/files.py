"""Files that are whole or absent: atomic JSON, text and safetensors, and their hashes. No pickle."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowpolicy.core.errors import CheckpointError, ConfigError, FlowPolicyError

if TYPE_CHECKING:  # a robot's computer reads contracts and runs exported policies without torch
    import torch


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it over ``path``.

    Until the rename whatever stood at ``path`` stays untouched, so a full disk or ``kill -9`` loses nothing.
    """
    _require_here(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming_full_disk(path, "what stood there before is untouched"):
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; on success flush it to disk and rename it to ``path``, else remove it.

    A folder that stands at ``path`` is removed in between: whoever is killed at that moment finds the old one or the
    new one beside it, under a hidden name.
    """
    _require_here(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = temporary.with_suffix(".old")
    try:
        with naming_full_disk(path, "what stood there before is untouched"):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                flush(file)
            flush(temporary)
        if path.is_dir():
            path.rename(old)
        elif path.exists():
            path.unlink()
        temporary.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def require_free(path: Path, overwrite: bool = False) -> None:
    """Refuse to write where something stands, before any work is done for it; ``overwrite`` permits it."""
    if path.exists() and not overwrite:
        raise FlowPolicyError(
            f"{path} is there already",
            expected="a path where nothing stands",
            fix="choose another path, or add --overwrite to replace what is there",
        )
    require_writable(path.parent)


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or in which nothing can be written, before any work is done for it.

    Raises:
        FlowPolicyError: a file stands where a folder is needed.
        OSError: the operating system refuses.

    """
    _require_here(folder)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise FlowPolicyError(f"{there} is a file", expected="a folder", fix="name another place, or move the file")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # of the folder, not of the file that was tried in it
        raise OSError(error.errno, error.strerror, str(there)) from error


def _require_here(path: Path) -> None:
    """Refuse a place in an object store, of which ``pathlib`` would make a folder named 's3:'."""
    if path.parts[:1] and path.parts[0].endswith(":"):
        from flowpolicy.core.object_store import refuse_address

        refuse_address(path)


def require_program(program: str, flag: str) -> None:
    """Refuse a program that cannot be run, before any work is done for it.

    Args:
        program: its path, or its name on the search path.
        flag: the flag that names it.

    Raises:
        ConfigError: there is none.

    """
    if shutil.which(program) is None:
        raise ConfigError(f"{flag} {program} is no program that can be run", fix="check the path and its permissions")


def read_secret(path: Path) -> str:
    """The text of a file that holds a token, without the space around it.

    Raises:
        ConfigError: there is none, or it holds something else.

    """
    try:
        if path.is_file() and path.stat().st_size > 4096:
            raise ConfigError(f"{path} holds {path.stat().st_size} bytes", expected="a token of a few dozen characters")
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error


@contextlib.contextmanager
def held_alone(folder: Path, purpose: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder while the block runs: a second process that wants to is refused, and told who holds it, or waits.

    The operating system frees the lock when its process ends, however it ends.

    Raises:
        FlowPolicyError: another process holds the folder.

    """
    _require_here(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise FlowPolicyError(
                f"{holder} works in {folder}",
                expected="one process at a time",
                fix="wait for it, or choose another --out",
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{purpose} (process {os.getpid()})".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming_full_disk(path: Path, kept: str) -> Iterator[None]:
    """A full disk met inside is a :class:`FlowPolicyError` that says what could not be written and what is ``kept``."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FlowPolicyError(
            f"no space left on the disk while writing {path}",
            fix=f"free some space and run the command again; {kept}",
        ) from error


SPARE = 64 << 20
"""Bytes that a cache leaves free: other programs write to the same disk, and few of them survive a full one."""


def require_space(folder: Path, size: int) -> None:
    """Raise what a full disk would raise unless ``size`` bytes and :data:`SPARE` are free where ``folder`` lies."""
    if size + SPARE > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Not-a-number is refused: JSON has no word for it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a :class:`CheckpointError` that names it."""
    try:
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise CheckpointError(f"{path} is no JSON file of flowpolicy: it has {size:,} bytes", fix="check the path")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing", fix="restore the file, or point at another run") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", fix="restore the file from a copy") from error


_LARGEST_JSON = 1 << 28
"""Bytes: more than any that is written here, and less than the memory of a robot's computer."""


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; anything else is a :class:`CheckpointError` that names it."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object", fix="restore the file from a copy")
    return value


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors to one safetensors file, atomically."""
    from safetensors.torch import save

    with replacing(path) as temporary:
        temporary.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; a missing or broken one is a :class:`CheckpointError` that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing", fix="restore the file, or point at another checkpoint") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}", fix="restore it, or point at another checkpoint"
        ) from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_root() -> Path:
    """Folder of what can be made again: ``XDG_CACHE_HOME/flowpolicy``, or ``~/.cache/flowpolicy``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowpolicy"


def unchanged_sha256(path: Path, *, anew: bool = False) -> str:
    """:func:`sha256`, computed once for as long as the file is neither written to nor replaced.

    That is remembered by place, inode, size and times: within the process, and of large files in the cache folder.

    Args:
        path: the file.
        anew: read it all the same, and compare with what is remembered.

    Raises:
        FlowPolicyError: the content has changed, and nothing else of the file has.

    """
    if not anew:
        return remembered_sha256(path) or _sha256_of(path, *_version(path))
    before, found = remembered_sha256(path), sha256(path)
    if before not in ("", found):
        raise FlowPolicyError(
            f"{path} has another content than when it was first read (SHA-256 {found[:12]}..., was {before[:12]}...), "
            "although its size and times are the same: a fault of the disk or of a program that sets times",
            fix=f"restore the file; or, if this content is right, `touch {path}`",
        )
    _remember(path, _version(path), found)
    return found


def tree_sha256(root: Path, names: Sequence[str], *, anew: bool = False) -> str:
    """SHA-256 of the names and contents of files of a folder; its large files are remembered as by other hashes.

    Args:
        root: the folder.
        names: paths in it.
        anew: as of :func:`unchanged_sha256`.

    """
    lines = [f"{unchanged_sha256(root / name, anew=anew)} {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def remembered_sha256(path: Path) -> str:
    """The hash of a large file that was computed before; empty where there is none, or the file is another since."""
    try:
        known = json.loads(_memory_of(path).read_text(encoding="utf-8"))
        return str(known["sha256"]) if known["version"] == _version(path) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@functools.lru_cache(4096)
def _sha256_of(path: Path, *version: int) -> str:
    found = sha256(path)
    _remember(path, list(version), found)
    return found


_LARGE = 1 << 26
"""Bytes from which a hash is worth remembering: a tenth of a second."""
_SETTLED = 2 * 10**9
"""Nanoseconds after its last change from which on any further change of a file has another time."""


def _remember(path: Path, version: list[int], found: str) -> None:
    size, changed = version[3], max(version[1:3])
    if size < _LARGE or time.time_ns() - changed < _SETTLED or version != _version(path):
        return
    with contextlib.suppress(OSError, FlowPolicyError):  # no room, no permission: it is computed again next time
        write_json(_memory_of(path), {"path": str(path.absolute()), "version": version, "sha256": found})


def _memory_of(path: Path) -> Path:
    place = hashlib.sha256(str(path.absolute()).encode()).hexdigest()
    return cache_root() / "hashes" / f"{place[:32]}.json"


def _version(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size]


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 of named tensors: names, shapes and values, in the order of the names."""
    import torch

    hashed = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
