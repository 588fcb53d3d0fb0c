"""Columns of a file that is too large for memory: in files of their own, found again without reading or opening it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowpolicy.core.errors import CheckpointError, DataError, DataWarning
from flowpolicy.core.files import SPARE, cache_root, flush, held_alone, read_object, require_space, write_json

_COMPLETE = "complete.json"

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Column name -> shape and type; an observation is named ``obs.<name>``."""
Rows = Mapping[str, NDArray[Any]]
"""The next rows of every column."""


def column_folder(digest: str, selection: Any) -> Path:
    """Where the columns of a file lie: another folder for other content, and for another selection.

    Args:
        digest: SHA-256 of the file.
        selection: JSON values that say what of the file is read, and how.

    """
    return cache_root() / f"{digest}-{hashlib.sha256(json.dumps(selection).encode()).hexdigest()[:12]}"


def size_of(layout: Layout) -> int:
    """Bytes of all columns."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def found_again(folder: Path) -> dict[str, Any] | None:
    """What was written about the columns in a folder; None where there are none, or other readers made them."""
    try:
        stated = read_object(folder / _COMPLETE)
    except (CheckpointError, OSError):
        return None
    return stated["about"] if stated.get("readers") == _readers() else None


def map_columns(folder: Path, layout: Layout, path: str, rows: Iterable[Rows], about: dict[str, Any]) -> None:
    """Write the columns of a file into ``folder``, or leave what an earlier run has written there.

    They are written beside it, the marker last, and the finished folder is renamed into place, so that no killed
    process leaves a cache that looks complete and is not; a second process waits for the first.

    Args:
        folder: of :func:`column_folder`.
        layout: what is written.
        path: of the file, for errors.
        rows: all of it, from the first row to the last.
        about: JSON values that :func:`found_again` gives back.

    Raises:
        DataError: the folder cannot be written.

    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        with held_alone(partial, f"the conversion of {path}", wait=True):
            if found_again(folder) is not None:  # by another process meanwhile
                shutil.rmtree(partial, ignore_errors=True)
                return
            try:
                _write(partial, layout, rows)
                write_json(partial / _COMPLETE, {"source": path, "readers": _readers(), "about": about})
                shutil.rmtree(folder, ignore_errors=True)  # of other readers; who maps its files keeps them
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise DataError(
            f"{path} is memory-mapped from {folder}, which cannot be written: {error.strerror or error}",
            expected=f"a folder with {(size_of(layout) + SPARE) / 1e6:,.0f} MB to spare",
            fix="name one in XDG_CACHE_HOME, or hold the data in memory: "
            f"--data.memory-limit-mb {math.ceil(size_of(layout) / 2**20)}",
        ) from error
    warnings.warn(
        f"{path}: {size_of(layout) / 1e9:.2g} GB of columns lie in {folder} from now on; delete it to free them",
        DataWarning,
        stacklevel=2,
    )


def mapped(folder: Path, layout: Layout) -> dict[str, Tensor]:
    """The columns of a complete folder; what is written to them stays in this process."""
    return {
        name: torch.from_file(str(folder / f"{name}.bin"), False, math.prod(shape), dtype=dtype).view(shape)
        for name, (shape, dtype) in layout.items()
    }


def layout_json(layout: Layout) -> dict[str, Any]:
    """A layout as JSON values."""
    return {name: [list(shape), str(dtype).removeprefix("torch.")] for name, (shape, dtype) in layout.items()}


def read_layout(value: Mapping[str, Any]) -> Layout:
    """Inverse of :func:`layout_json`."""
    return {name: (tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in value.items()}


def _write(partial: Path, layout: Layout, rows: Iterable[Rows]) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    require_space(partial, size_of(layout))
    with contextlib.ExitStack() as stack:
        # Written, not mapped: the pages of a map count as memory of the process, and a full disk ends it by a signal.
        files = {name: stack.enter_context((partial / f"{name}.bin").open("wb")) for name in layout}
        for name, (shape, dtype) in layout.items():  # a disk that is too full is told before minutes of work
            os.posix_fallocate(files[name].fileno(), 0, max(1, math.prod(shape) * dtype.itemsize))
        kinds = {name: torch.empty(0, dtype=dtype).numpy().dtype for name, (_, dtype) in layout.items()}
        for part in rows:
            for name, value in part.items():
                files[name].write(np.ascontiguousarray(value, kinds[name]).tobytes())
    for name in layout:
        flush(partial / f"{name}.bin")


@functools.lru_cache(1)
def _readers() -> str:
    """What tells the readers of this version from those of others: columns of others are made anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
