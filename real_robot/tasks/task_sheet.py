"""What a person teaches: name, words, where it begins, how long it may take, and who says that it was done."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_object, write_json
from flowpolicy.real_robot.arm.models import find_arm
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.tasks.tasks import SCATTER, Demonstration, WaypointPath

Detector = Callable[[Mapping[str, NDArray[Any]]], bool]
"""Says from an observation (the robot's, by their names, and NAME_image of every camera) whether the task is done."""
SHEET = "task.json"
"""File of a recording's folder that says what is taught there."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


@dataclasses.dataclass(frozen=True)
class TaskSheet:
    """One task."""

    name: str
    """Of the task."""
    instruction: str = ""
    """What is to be done, in a sentence; stored with every episode."""
    reset: str = ""
    """What the person does before each episode."""
    start: str = ""
    """Name of the saved pose that episodes begin at; the arm's home unless given."""
    scatter: float = 0.0
    """How far from it each joint may be at the beginning, rad: drawn anew for every episode, within the workspace."""
    horizon_s: float = 30.0
    """Seconds of motion after which an episode is over."""
    success: str = ""
    """Who says that it is done: MODULE:FUNCTION; the person, by a key, unless given."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"--task {self.name!r}", expected="a name of letters, digits, '.', '_' and '-'")
        if not 1.0 <= self.horizon_s <= 600.0:
            raise ConfigError(f"--horizon {self.horizon_s:g}", expected="1 to 600 s")
        if not 0.0 <= self.scatter <= 0.3:
            raise ConfigError(f"--scatter {self.scatter:g}", expected="0 to 0.3 rad")
        for flag, text in (("instruction", self.instruction), ("reset", self.reset)):
            if len(text) > 400 or not text.isprintable():
                raise ConfigError(f"--{flag} of {len(text)} characters", expected="one line of at most 400")


BUILT_IN = {
    "reach": TaskSheet("reach", "move the tool to the goal and stay there", scatter=SCATTER, horizon_s=12.0),
    "lift": TaskSheet(
        "lift",
        "lift the cube off the table",
        "the cube is put on the table by itself",
        scatter=SCATTER,
        horizon_s=12.0,
    ),
}
"""Tasks that set themselves up, and find out themselves whether they are done."""


def sheet_in(folder: Path, base: TaskSheet, changed: Mapping[str, Any]) -> TaskSheet:
    """The sheet of a recording's folder; what is not changed is as it was. :func:`keep_sheet` writes it there.

    Args:
        folder: of the recordings.
        base: what a folder without a sheet begins with.
        changed: fields that are said anew.

    Raises:
        ConfigError: the folder is of another task, or the sheet cannot be read.

    """
    path = folder / SHEET
    if not path.exists():
        return dataclasses.replace(base, **changed)
    stored = read_object(path)
    try:
        kept = TaskSheet(**stored)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}", expected="what `flowpolicy robot record` wrote there") from error
    if kept.name != base.name:
        raise ConfigError(
            f"{folder} holds episodes of the task '{kept.name}', not of '{base.name}'",
            expected="one folder per task",
            fix="record into another folder: --out",
        )
    return dataclasses.replace(kept, **changed)


def keep_sheet(folder: Path, sheet: TaskSheet) -> None:
    """Write the sheet of a recording's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SHEET, dataclasses.asdict(sheet))


def pose_file(arm: str, name: str) -> Path:
    """Where a saved pose of an arm is."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the pose {name!r}", expected="a name of letters, digits, '.', '_' and '-'")
    return _poses(arm) / f"{name}.json"


def save_pose(arm: str, name: str, q: NDArray[np.float64]) -> Path:
    """Keep joint positions (n,) rad under a name; returns the file."""
    path = pose_file(arm, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"arm": arm, "q": [round(float(value), 6) for value in q]})
    return path


def saved_poses(arm: str) -> list[str]:
    """Names of the poses of an arm."""
    return sorted(path.stem for path in _poses(arm).glob("*.json"))


def start_pose(arm: str, name: str) -> NDArray[np.float64]:
    """(n,) rad of a saved pose; the arm's home for an empty name.

    Raises:
        ConfigError: there is none, or it is not one of this arm.

    """
    model = find_arm(arm)
    if not name:
        return np.array(model.home)
    path = pose_file(arm, name)
    if not path.exists():
        known = ", ".join(saved_poses(arm)) or "none are saved yet"
        raise ConfigError(
            f"no pose '{name}' of the arm '{arm}'", expected=known, fix=f"flowpolicy robot pose save {name}"
        )
    low, high = np.array(model.limits.q_min), np.array(model.limits.q_max)
    try:
        q = np.array(read_object(path).get("q", ()), dtype=np.float64)
    except (TypeError, ValueError):  # words, or lists of several lengths
        q = np.zeros(0)
    if q.shape != low.shape or not ((q > low) & (q < high)).all():
        raise ConfigError(f"{path} holds no pose of the arm '{arm}'", fix=f"flowpolicy robot pose save {name}")
    return q


def _poses(arm: str) -> Path:
    root = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return root / "flowpolicy" / "poses" / arm


def find_detector(spec: str) -> Detector:
    """The function that MODULE:FUNCTION names; modules of the present folder are found too.

    Raises:
        ConfigError: there is no such module or function.

    """
    module, _, function = spec.partition(":")
    if not module or not function:
        raise ConfigError(f"--success {spec!r}", expected="MODULE:FUNCTION, such as my_detector:cup_is_up")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the person's own raises whatever it will
        raise ConfigError(
            f"--success {spec}: {type(error).__name__}: {error}", expected="a module that can be imported from here"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"--success {spec} is no function", expected="one that takes an observation and says yes or no"
        )
    detector: Detector = found
    return detector


class TaughtTask:
    """A task that knows nothing of the world: a person sets it up, and a person or a detector says when it is done.

    Args:
        name: of the task.
        solved: asked with every tick.

    """

    def __init__(self, name: str, solved: Callable[[Records], bool] = lambda tick: False) -> None:
        self.name, self._solved = name, solved

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Nothing: the person has set it up."""
        return np.zeros(0)

    def look(self) -> NDArray[np.float64] | None:
        """Nothing is known."""
        return None

    def solved(self, tick: Records) -> bool:
        """Whether the detector says so."""
        return self._solved(tick)

    def aside(self, tick: Records, rng: np.random.Generator) -> WaypointPath | None:
        """Nowhere."""
        return None

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> Demonstration:
        """Refused: only a person can."""
        raise ConfigError(f"nobody has written down how to do '{self.name}'", fix="teach it: --teach spacemouse")
