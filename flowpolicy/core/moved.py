"""Modules that programs of before import from where they no longer are. Nothing in the house imports them.

``flowpolicy.real_robot.kinematics`` and its like went into rooms when an arm became a model with any number of joints;
what was said of seven joints is the FR3's here. A module is made when it is first imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROBOT = "flowpolicy.real_robot"
_JOINTS = 7

MOVED: dict[str, tuple[str, dict[str, Callable[[ModuleType], Any]]]] = {
    f"{_ROBOT}.braking": (f"{_ROBOT}.arm.braking", {}),
    f"{_ROBOT}.envelope": (f"{_ROBOT}.arm.envelope", {}),
    f"{_ROBOT}.follower": (f"{_ROBOT}.arm.follower", {}),
    f"{_ROBOT}.kinematics": (f"{_ROBOT}.arm.kinematics", {}),
    f"{_ROBOT}.states": (f"{_ROBOT}.bridge.states", {}),
    f"{_ROBOT}.protocols": (f"{_ROBOT}.drivers.driver_protocols", {}),
    f"{_ROBOT}.limits": (
        f"{_ROBOT}.arm.envelope_limits",
        {"MODELS": lambda _: {arm.name: arm for arm in importlib.import_module(f"{_ROBOT}.arm.models").ARMS.values()}},
    ),
    f"{_ROBOT}.records": (
        f"{_ROBOT}.bridge.ring_records",
        {"TICK": lambda module: module.tick_type(_JOINTS), "CHUNK": lambda module: module.chunk_type(_JOINTS)},
    ),
    "flowpolicy.envs.franka": (
        "flowpolicy.envs.arm_tasks",
        {"FrankaConfig": lambda module: module.ArmTaskConfig},
    ),
}
"""Where a module was -> where it is, and names that are made of what it holds now."""


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        place, made = MOVED[module.__name__]
        there = importlib.import_module(place)
        public = {name: value for name, value in vars(there).items() if not name.startswith("__")}
        vars(module).update(public, **{name: make(there) for name, make in made.items()})


def keep_importable() -> None:
    """Let the imports of before find their modules; once in a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
