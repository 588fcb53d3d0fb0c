"""The recordings of a folder as a LeRobot folder beside them, written anew from the episode files.

The episode files stay what is recorded: they are whole after any crash, and hold what LeRobot has no place for. The
copy is made of them when a session ends, so that no video is encoded while an arm moves.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import DataError, MissingExtraError
from flowpolicy.core.files import held_alone, read_object
from flowpolicy.data.lerobot_meta import OWN, is_lerobot, require_pyarrow
from flowpolicy.data.lerobot_pictures import require_av
from flowpolicy.real_robot.session.episodes import INDEX

COPY = "lerobot"
"""Folder, in that of the recordings, of the copy."""


def require_copying(folder: Path) -> None:
    """Refuse, before anything moves, where a copy could not be written.

    Args:
        folder: of the recordings.

    Raises:
        MissingExtraError: a package is not installed.
        DataError: something else stands where the copy belongs.

    """
    require_pyarrow()
    require_av()
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "lerobot")
    copy = folder / COPY
    if copy.exists() and _source(copy).get("name") != INDEX:
        raise DataError(
            f"{copy} was not written from these recordings", fix="move it away, or record into another folder"
        )


def write_lerobot_copy(folder: Path, command: str) -> str:
    """Write all episodes of a folder as ``lerobot`` in it, whole or not at all; returns what was done, in words.

    Every episode is there, failures too; the splits ``successful``, ``failed`` and ``unlabelled`` say which is which.

    Args:
        folder: of the recordings.
        command: what was typed, for the provenance.

    Raises:
        FlowPolicyError: it cannot be written; what stood there is untouched.

    """
    require_copying(folder)
    from flowpolicy.data.conversion import losses, survey, write_all
    from flowpolicy.data.episode_edits import of_file
    from flowpolicy.data.episode_file import open_episodes

    copy = folder / COPY
    if not (folder / INDEX).exists():
        return f"{copy} was not written: {folder} holds no episode"
    with held_alone(folder, f"writing {copy}", wait=True), open_episodes(folder / INDEX) as source:
        if copy.exists() and _source(copy).get("sha256") == source.sha256:
            return f"{copy} holds the {len(source.names)} demonstrations"
        for left in folder.glob(f".{COPY}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        stream = of_file(source)
        found = survey(stream)
        lost = losses(stream, found, "lerobot")
        write_all([(stream, copy)], "lerobot", [found], command=command, lost=[lost])
        return f"{copy} holds the {found.episodes} demonstrations"


def _source(copy: Path) -> dict[str, Any]:
    """What a copy says of the file that it was made of; empty where it is none."""
    if not is_lerobot(copy) or not (copy / OWN).is_file():
        return {}
    said = read_object(copy / OWN).get("source")
    return said if isinstance(said, dict) else {}
