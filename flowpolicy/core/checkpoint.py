"""Checkpoint folders: published whole, verified before use, newest named by ``LATEST``.

::

    RUN/checkpoints/LATEST              name of the newest whole checkpoint; moves last
    RUN/checkpoints/step_00001000/      weights, ema, optim, normalizer (safetensors), state, config,
                                        contract (JSON), card.md, manifest.json (SHA-256 of every file)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from flowpolicy.core.errors import CheckpointError
from flowpolicy.core.files import flush, read_object, sha256, write_json, write_text
from flowpolicy.core.run_places import local_run

FOLDER = "checkpoints"
LATEST = "LATEST"
MANIFEST = "manifest.json"
ESSENTIAL = ("weights.safetensors", "ema.safetensors", "normalizer.safetensors", "config.json", "contract.json")


def publish(run: Path, step: int, write: Callable[[Path], None], keep: int = 0) -> Path:
    """Write a checkpoint of ``run`` and make it the newest.

    ``write`` fills a temporary folder, which is renamed when every file is on the disk; only then does
    ``LATEST`` move. Killed at any moment, the newest checkpoint is the previous whole one.

    Args:
        run: the run folder.
        step: number of finished updates.
        write: fills the folder that it is given.
        keep: how many newest checkpoints stay; 0 keeps all.

    """
    root = run / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step_*"):
        shutil.rmtree(leftover)
    final = root / f"step_{step:08d}"
    temporary = root / f".{final.name}"
    temporary.mkdir()
    try:
        write(temporary)
        write_json(temporary / MANIFEST, {path.name: sha256(path) for path in sorted(temporary.iterdir())})
        _rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(root)
    write_text(root / LATEST, final.name + "\n")
    if keep:
        for old in sorted(root.glob("step_*"))[:-keep]:
            shutil.rmtree(old)
    return final


def _rename(temporary: Path, final: Path) -> None:
    """Move a finished folder into place; a whole one that stands there (killed before LATEST moved) is kept."""
    if final.exists():
        try:
            verify(final)
        except CheckpointError:
            shutil.rmtree(final)
        else:
            shutil.rmtree(temporary)
            return
    temporary.rename(final)


def resolve(path: Path) -> Path:
    """The checkpoint folder meant by ``path``: itself, or the newest one of a run; verified.

    A run may also lie elsewhere: see :func:`flowpolicy.core.run_places.local_run`.

    Raises:
        CheckpointError: nothing there, or a file is missing or altered.
        StoreError: the store that it names cannot be reached.

    """
    path = local_run(path)
    if (path / MANIFEST).exists() or (path / "contract.json").exists():
        folder = path
    elif (path / FOLDER / LATEST).exists() or newest(path):
        folder = path / FOLDER / newest(path)
        if folder == path / FOLDER or not folder.is_dir():
            there = ", ".join(sorted(step.name for step in (path / FOLDER).glob("step_*"))) or "none"
            raise CheckpointError(
                f"{path / FOLDER / LATEST} names the checkpoint '{newest(path)}', which is not there",
                expected=f"one of those in {path / FOLDER}: {there}",
                fix="restore the folder, or write the name of another one into LATEST",
            )
    else:
        raise CheckpointError(
            f"{path} holds no checkpoint",
            expected=f"a run folder with {FOLDER}/{LATEST}, or a checkpoint folder with {MANIFEST}",
            fix="train first: flowpolicy train PRESET --out RUN",
        )
    verify(folder)
    return folder


def run_of(folder: Path) -> Path:
    """The run folder that a checkpoint folder lies in; itself where it stands alone."""
    if folder.absolute().parent.name != FOLDER:
        return folder
    # Relative paths stay so, except from within a run, where a path has too few parts.
    return (folder if folder.parent.name else folder.absolute()).parent.parent


def newest(path: Path) -> str:
    """Name of the checkpoint that :func:`resolve` would take, not verified; empty where there is none.

    Of a run that was killed after its first checkpoint was in place and before ``LATEST`` was, that checkpoint.
    """
    latest = path / FOLDER / LATEST
    if latest.exists():
        return latest.read_text(encoding="utf-8", errors="replace").strip()
    return max((folder.name for folder in (path / FOLDER).glob("step_*") if _has_all(folder)), default="")


def _has_all(folder: Path) -> bool:
    """Whether all files of a checkpoint are there: those of one that is sent from elsewhere come one by one."""
    manifest = folder / MANIFEST
    return manifest.exists() and all((folder / name).exists() for name in read_object(manifest))


def fingerprint(folder: Path) -> str:
    """Hash of a checkpoint: of its manifest, which holds the hash of every file."""
    return sha256(folder / MANIFEST)


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest."""
    manifest = read_object(folder / MANIFEST)
    for name in dict.fromkeys([*ESSENTIAL, *manifest]):
        path = folder / name
        if not path.exists():
            raise CheckpointError(
                f"{path} is missing", fix="restore the file, or name an older checkpoint folder of the run"
            )
        if name not in manifest or sha256(path) != manifest[name]:
            raise CheckpointError(
                f"{path} was altered after it was written (its SHA-256 differs from {MANIFEST})",
                fix="restore the file, or name an older checkpoint folder of the run",
            )
