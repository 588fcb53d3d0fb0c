"""Folders that ``flowpolicy export`` writes: a model without its training, verified before use. No torch, no pickle.

::

    FOLDER/engine.json       schema, format, evaluations, batch sizes, threads, files, tolerance and measured difference
    FOLDER/contract.json     what the policy may be used for and how
    FOLDER/card.md           the same in words
    FOLDER/batch_N.onnx      one graph per batch size; batch_N.pt2 for AOTInductor, batch_N.safetensors for NumPy
    FOLDER/manifest.json     SHA-256 of every file
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from flowpolicy.core.checkpoint import MANIFEST
from flowpolicy.core.errors import CheckpointError
from flowpolicy.core.files import read_object
from flowpolicy.core.noise import NoiseLaw
from flowpolicy.core.spec import Contract, load_contract
from flowpolicy.policy.engines.engine import Shapes

Format = Literal["onnx", "pt2", "numpy"]
HEADER = "engine.json"
SCHEMA = 3
"""Version of ``engine.json``. Others are refused: the run is exported again."""


@dataclasses.dataclass(frozen=True)
class Package:
    """An export folder whose files all have the hashes of its manifest."""

    folder: Path
    """Where it is."""
    contract: Contract
    """What the policy may be used for and how."""
    format: Format
    """Kind of model."""
    nfe: int
    """Network evaluations per chunk, fixed at export."""
    candidates: int
    """Chunks generated per row."""
    prefix: int
    """Most committed actions."""
    noise: NoiseLaw
    """Law of the noise at the start."""
    batches: tuple[int, ...]
    """Batch sizes with a graph of their own; empty where any size will do."""
    threads: int
    """Threads that are compiled into the model; 0 where they are chosen at load."""
    files: dict[str, str]
    """Batch size, or 'any', to file name."""
    policy: dict[str, Any]
    """The policy's configuration as in ``config.json``."""

    @property
    def shapes(self) -> Shapes:
        """Sizes of the buffers."""
        return Shapes(self.contract, self.candidates, self.prefix, self.noise)

    def read(self, batch: int | str) -> bytes:
        """The bytes of a model file, which are the ones that the manifest names."""
        return verified(self.folder, self.files[str(batch)], read_manifest(self.folder))


def is_package(folder: Path) -> bool:
    """Whether ``folder`` is, or was, written by ``flowpolicy export``."""
    return (folder / HEADER).exists()


def _count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


_HEADER: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": ("onnx, pt2 or numpy", lambda value: value in get_args(Format)),
    "nfe": ("a number, at least 1", _count),
    "candidates": ("a number, at least 1", _count),
    "prefix": ("a number, at least 0", lambda value: _count(value, 0)),
    "noise": ("entries, scale and dof of a law", lambda value: isinstance(value, dict) and NoiseLaw.fits(**value)),
    "threads": ("a number, at least 0", lambda value: _count(value, 0)),
    "batches": ("numbers, at least 1 each", lambda value: isinstance(value, list) and all(map(_count, value))),
    "files": (
        "batch size to name of a file",
        lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    ),
    "policy": ("the policy's configuration", lambda value: isinstance(value, dict)),
}
"""Field of ``engine.json`` -> what it holds, in words, and whether a value is that."""


def open_package(folder: Path) -> Package:
    """Verify every file of an export folder and read what it says about itself.

    Raises:
        CheckpointError: a file is missing, truncated, edited, or written by an unknown version.

    """
    manifest = read_manifest(folder)
    for name in dict.fromkeys([HEADER, "contract.json", *manifest]):
        verified(folder, name, manifest)
    header = read_object(folder / HEADER)
    if header.pop("schema", None) != SCHEMA:
        raise CheckpointError(
            f"{folder / HEADER} has an unknown schema version", fix="export again with this flowpolicy"
        )
    for field, (what, fits) in _HEADER.items():
        if field not in header or not fits(header[field]):
            raise CheckpointError(
                f"{folder / HEADER} does not describe a model: {field} is {header.get(field, 'missing')}",
                expected=what,
                fix="export the run again",
            )
    fields = {field: header[field] for field in _HEADER if field not in ("batches", "noise")}
    contract, batches = load_contract(folder / "contract.json"), tuple(header["batches"])
    package = Package(folder=folder, contract=contract, batches=batches, noise=NoiseLaw(**header["noise"]), **fields)
    for name in package.files.values():
        if name not in manifest:
            raise CheckpointError(f"{folder / HEADER} names {name}, which the manifest does not", fix="export again")
    return package


def read_manifest(folder: Path) -> dict[str, str]:
    """File name -> SHA-256."""
    manifest = read_object(folder / MANIFEST)
    if any(Path(name).name != name or not isinstance(stated, str) for name, stated in manifest.items()):
        raise CheckpointError(f"{folder / MANIFEST} is no manifest of an export", fix="export the run again")
    return manifest


def verified(folder: Path, name: str, manifest: dict[str, str]) -> bytes:
    """The bytes of a file after they were checked against the manifest."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", fix="copy the whole export folder, or export the run again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.get(name):
        raise CheckpointError(
            f"{path} was altered or cut short after the export (its SHA-256 differs from {MANIFEST})",
            fix="copy the whole export folder again, or export the run again",
        )
    return content
