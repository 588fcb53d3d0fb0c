"""HDF5 access that names file and key when something is wrong, and what a format reader returns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import mmap
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, nearest
from flowpolicy.core.files import replacing
from flowpolicy.core.spec import Spec

_ANEW = "copy, download or generate the file again"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[h5py.File]:
    """A new file that appears at ``path`` when the block ends without an error, and else not at all.

    It is in memory until then: HDF5 crashes the process when a disk runs full under an open file.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        with replacing(path) as temporary:
            temporary.write_bytes(file.id.get_file_image())


@contextlib.contextmanager
def streamed_whole(path: Path) -> Iterator[h5py.File]:
    """Like :func:`written_whole`, for files that need not fit into memory: what is written goes to the disk at once."""
    with replacing(path) as temporary, temporary.open("w+b", buffering=0) as stream:
        kept = _KeepsGoing(stream)
        try:
            with h5py.File(kept, "w") as file:
                yield file
        except Exception as error:
            raise (kept.error or error) from error
        if kept.error is not None:
            raise kept.error


class _KeepsGoing:
    """The file below an HDF5 file: the first error of the disk is kept, and what follows is dropped.

    HDF5 ends the process when it cannot write down, while closing, what it holds.
    """

    def __init__(self, stream: FileIO) -> None:
        self._stream, self.error = stream, cast("OSError | None", None)
        self.seek = stream.seek
        self.tell = stream.tell
        self.read = stream.read

    def readinto(self, into: Any) -> int:
        read = self._stream.readinto(into) or 0
        into[read:] = bytes(len(into) - read)
        return len(into)

    def write(self, data: Any) -> int:
        view, written = memoryview(data), 0
        while self.error is None and written < len(view):
            try:
                written += self._stream.write(view[written:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int) -> int:
        try:
            self._stream.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size

    def flush(self) -> None:
        pass


@dataclasses.dataclass
class EpisodeColumns:
    """One episode of T steps."""

    obs: dict[str, NDArray[Any]]
    """name -> (T, d) float32, observation before the action of the same row; without pictures."""
    action: NDArray[Any]
    """(T, a) float32."""
    reward: NDArray[Any]
    """(T,) float32."""
    mask: NDArray[Any]
    """(T,) float32, 0 only on true termination."""
    task: NDArray[Any] | None = None
    """(T,) int64, which of the recording's instructions every row follows; None where it has none."""


@runtime_checkable
class Recording(Protocol):
    """An open dataset file, read episode by episode. One implementation per file format."""

    format: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    spec: Spec
    env_args: dict[str, Any]
    filters: dict[str, int]
    provenance: str
    """What the file says of where its episodes come from, JSON; empty where it says nothing."""
    unread: dict[str, str]
    """Observations that are in the file and are not read, and why."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What contradicts itself in the file, or had to be assumed to read it."""

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of the episode ``names[index]``."""

    def key(self, index: int, column: str, name: str = "") -> str:
        """Where a column (a word of :mod:`flowpolicy.core.keys`) of an episode stands in the file."""


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; a missing, foreign or truncated one is a :class:`DataError`."""
    if not path.is_file():
        raise DataError(f"{path} is not a file", fix="check the path, or generate data with `flowpolicy data make`")
    try:
        known = h5py.is_hdf5(path)
    except OSError:  # held by a writer, which opening it tells
        known = True
    if not known:
        raise DataError(
            f"{path} is not an HDF5 file ({path.stat().st_size} bytes)",
            expected="a RoboMimic, D4RL or Minari HDF5 file, or an OGBench npz",
            fix="check the path; a download that stopped early must be repeated",
        )
    stat = path.stat()
    if not _heaps_end(path, stat.st_ino, stat.st_mtime_ns, stat.st_size):
        raise DataError(f"{path} is damaged: a store of text in it has no end", fix=_ANEW)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if "unable to lock" in str(error) or "already open for write" in str(error):
            raise DataError(
                f"{path} is open for writing in another program",
                fix="close that program or let it finish; a file that nobody writes any more, on a disk without locks, "
                "is read with HDF5_USE_FILE_LOCKING=FALSE",
            ) from error
        if isinstance(error, PermissionError):
            raise DataError(f"{path} may not be read: {error}", fix="change its permissions") from error
        raise DataError(f"{path} is truncated or damaged: {error}", fix=_ANEW) from error
    with file:
        try:
            require_names(file, path)
            yield file
        except Exception as error:
            if not _from_hdf5(error):
                raise
            raise DataError(
                f"{path} is truncated or damaged: {str(error) or type(error).__name__}",
                fix=_ANEW,
            ) from error


@functools.lru_cache(1024)
def _heaps_end(path: Path, *version: int) -> bool:
    """Whether HDF5 comes to the end of every global heap of a file, where it keeps text of any length.

    It steps from entry to entry by their sizes, and stays for ever where damage made one empty. Files that are neither
    written to nor replaced are looked at once in a process.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start in _heaps(stream):
            place, end = start + 16, min(start + _number(content, start + 8), len(content))
            while place + 16 <= end:
                index, size = content[place] + 256 * content[place + 1], _number(content, place + 8)
                step = ((16 + (size + 7) // 8 * 8) if index else size) % 2**64
                if not step:
                    return False
                place += step
    return True


def _heaps(stream: BinaryIO) -> Iterator[int]:
    """Where the global heaps of a file begin; read in blocks, which is several times faster than a search by mmap."""
    before, place = b"", 0
    while block := stream.read(1 << 20):
        text, base = before + block, place - len(before)
        found = text.find(_HEAP)
        while found >= 0:
            yield base + found
            found = text.find(_HEAP, found + 1)
        before, place = text[1 - len(_HEAP) :], place + len(block)


_HEAP = b"GCOL\1\0\0\0"
"""What a global heap begins with, in every file version of HDF5 so far."""


def _number(content: mmap.mmap, place: int) -> int:
    return int.from_bytes(content[place : place + 8], "little")


def require_names(group: h5py.Group, path: Path) -> None:
    """Raise unless every name in a group is text; in a damaged file some are bytes."""
    if wrong := [name for name in group if not isinstance(name, str)]:
        raise DataError(
            f"{path} is damaged: {group.name} holds a name that is no text: {wrong[0]!r}",
            fix=_ANEW,
        )


def _from_hdf5(error: BaseException) -> bool:
    """Whether it was the library that raised: where a file is damaged, any access may, with any kind of error."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and "h5py" in place.tb_frame.f_code.co_filename


def read_array(group: h5py.Group, name: str, path: Path) -> NDArray[Any]:
    """All values of a dataset; missing and unreadable ones are errors that name the key."""
    node = find_array(group, name, path)
    try:
        return np.asarray(node[()])
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: {key_of(group, name)} cannot be read: {error}", fix="copy or generate the file again"
        ) from error


def find_array(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """A dataset of real numbers, unread; anything else is an error that names the key."""
    key = key_of(group, name)
    if name not in group:
        raise DataError(f"{path}: {key} is missing", expected=f"found: {', '.join(map(str, group)) or 'nothing'}")
    node = group[name]
    if not isinstance(node, h5py.Dataset):
        what = "a group" if isinstance(node, h5py.Group) else "the description of a type"
        raise DataError(f"{path}: {key} is {what}", expected="an array")
    require_numbers(node, key, path)
    return node


def arrays_below(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Every array below a group by its path; links to elsewhere are not followed."""
    found: dict[str, h5py.Dataset] = {}

    def note(place: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[place] = node

    group.visititems(note)
    return found


def read_attribute(node: h5py.Group, name: str, path: Path, default: Any = None) -> Any:
    """The text or the numbers of an attribute; ``default`` where there is none.

    Lists of any length and references are refused unread: damaged ones end the process inside the HDF5 library.
    """
    if name not in node.attrs:
        return default
    dtype = node.attrs.get_id(name).dtype
    if h5py.check_string_dtype(dtype) is None and dtype.kind not in "fiub":
        raise DataError(
            f"{path}: the attribute {name} of {node.name[1:] or 'the file'} holds neither text nor numbers",
            fix=_ANEW,
        )
    return node.attrs[name]


def json_attribute(data: h5py.Group, attribute: str, path: Path) -> dict[str, Any]:
    """The JSON object in an attribute; empty where there is no such attribute."""
    stated = read_attribute(data, attribute, path)
    if stated is None:
        return {}
    try:
        value = json.loads(stated)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DataError(
            f"{path}: the attribute {attribute} of {data.name[1:] or 'the file'} is not valid JSON: {error}"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: the attribute {attribute} of {data.name[1:] or 'the file'} is no JSON object")
    return value


def require_numbers(node: h5py.Dataset, key: str, path: Path) -> None:
    """Raise unless an array holds real numbers: no text, no complex ones, no rows of their own lengths."""
    if node.shape is None or (why := _unreadable(node)):
        raise DataError(f"{path}: {key} holds {why or 'nothing'} ({node.dtype})", expected="real numbers")


def require_flags(array: NDArray[Any], key: str, path: Path) -> NDArray[Any]:
    """The flags as booleans; anything but 0 and 1 is an error: 255 and NaN would be true in some formats only."""
    wrong = np.flatnonzero(~np.isin(array, (0, 1)))
    if wrong.size:
        raise DataError(
            f"{path}: {key} holds {array.reshape(-1)[wrong[0]]} in row {wrong[0]}",
            expected="0 or 1 in every row",
            fix="write the flags anew; a value that stands for 'ended' must be 1",
        )
    return array.astype(bool)


def _unreadable(node: h5py.Dataset) -> str:
    """What an array holds that is no real number; empty where it holds such."""
    if h5py.check_vlen_dtype(node.dtype) not in (None, str, bytes):
        return "rows of different lengths"
    if node.dtype.kind in "SUO":
        return "text"
    if node.dtype.kind == "c":
        return "complex numbers"
    return "" if node.dtype.kind in "fiub" else "records"


def require_group(group: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A sub-group, or an error that names it."""
    node = group.get(name)
    if not isinstance(node, h5py.Group):
        raise DataError(
            f"{path}: the group {key_of(group, name)} is missing",
            expected=f"found: {', '.join(map(str, group)) or 'nothing'}",
        )
    return node


def require_steps(shape: tuple[int, ...], steps: int, ndim: int, key: str, path: Path) -> None:
    """Raise unless an array of this shape has ``steps`` rows and ``ndim`` dimensions."""
    if len(shape) != ndim or shape[0] != steps:
        wanted = f"({steps},)" if ndim == 1 else f"({steps}, size)"
        raise DataError(
            f"{path}: {key} has shape {shape}",
            expected=f"{wanted}, one row per action",
            fix="remove the episode or record it again",
        )


def low_dim_keys(group: h5py.Group) -> list[str]:
    """Names, in the file's order, of the numeric arrays with at most one dimension per step."""
    return [key for key, node in group.items() if not why_unread(node)]


def unread_keys(group: h5py.Group) -> dict[str, str]:
    """The other names, and why they are not read."""
    return {key: why for key, node in group.items() if (why := why_unread(node))}


def why_unread(node: Any) -> str:
    """Why an observation is not read; empty where it is."""
    if not isinstance(node, h5py.Dataset):
        return "a group of keys"
    if node.shape is None:
        return "empty"
    if why := _unreadable(node):
        return why
    if node.ndim in (1, 2):
        return ""
    kind = "pictures" if node.ndim == 4 and node.dtype == np.uint8 else "more than one dimension per step"
    return f"{kind}, {node.dtype} (T, {', '.join(map(str, node.shape[1:]))})"


def choose_keys(group: h5py.Group, wanted: Sequence[str], path: Path) -> list[str]:
    """The observation keys to read: ``wanted``, or every low-dimensional one."""
    known = low_dim_keys(group)
    for name in wanted:
        if name not in known:
            why = f"is not read: {why_unread(group[name])}" if name in group else "does not exist"
            raise DataError(f"{path}: the observation {key_of(group, name)} {why}", expected=nearest(name, known))
    if not known:
        raise DataError(f"{path}: {group.name[1:]} holds no low-dimensional observation")
    return list(wanted) or known


def key_of(group: h5py.Group, name: str) -> str:
    """Path of a key inside the file, without the leading slash."""
    return f"{group.name}/{name}".lstrip("/")
