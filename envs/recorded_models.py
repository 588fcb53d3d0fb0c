"""What of a recorded file is handed to the simulator: its model and the arguments of its environment, checked first.

A model is XML that MuJoCo compiles: it may name files, plugins and sizes. An environment's arguments may name files of
controllers. Both come from whoever made the file.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flowpolicy.core.errors import DataError

_LONGEST = 8 << 20
_ELEMENTS = 50_000
_REFUSED = {
    *("include", "extension", "plugin", "model", "attach", "replicate", "composite", "flexcomp", "flex", "frame"),
    *("instance", "config", "hfield", "skin"),
}
"""Elements that read further files, load code, or grow when they are compiled; robosuite's models have none."""
_SIZES = {"width": 8192, "height": 8192, "nconmax": 100_000, "njmax": 100_000, "nuserdata": 100_000}
_SIMPLE = {
    "robots": (str, list),
    "env_configuration": (str,),
    "gripper_types": (str,),
    "base_types": (str,),
    "use_object_obs": (bool,),
    "control_freq": (int, float),
    "reward_shaping": (bool,),
    "reward_scale": (int, float),
    "ignore_done": (bool,),
    "hard_reset": (bool,),
    "horizon": (int,),
    "lite_physics": (bool,),
    "single_object_mode": (int,),
    "object_type": (str,),
    "nut_type": (str,),
    "use_latch": (bool,),
    "table_full_size": (list,),
    "table_friction": (list,),
}
"""Arguments of robosuite's environments that are taken from a file, and their types."""
_DROPPED = ("camera_", "render_", "has_", "use_camera_obs", "renderer", "use_indicator_object", "seed", "mount_types")
"""How arguments begin that decide what is drawn, or that are set here."""


def require_safe_model(xml: str, where: str) -> None:
    """Refuse a model that would do more than describe bodies.

    Args:
        xml: as it is stored.
        where: file and episode, for errors.

    Raises:
        DataError: it is no XML, or it names files outside robosuite, loads plugins or asks for huge sizes.

    """

    def refuse(what: str) -> DataError:
        return DataError(
            f"the model of {where} {what}",
            expected="a model as robosuite writes it",
            fix="leave the episode out, or record it again",
        )

    if len(xml) > _LONGEST:
        raise refuse(f"has {len(xml):,} characters")
    if re.search(r"<!(DOCTYPE|ENTITY)", xml, re.IGNORECASE):
        raise refuse("declares entities")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  without entities nothing can be expanded
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise refuse(f"is no XML: {error}") from error
    if root.tag != "mujoco" or len(root.findall("asset")) != 1 or root.find("worldbody") is None:
        raise refuse("is none of robosuite")
    files = {*root.findall("asset/mesh"), *root.findall("asset/texture")}  # which robosuite looks for in its own folder
    for number, element in enumerate(root.iter()):
        if number > _ELEMENTS:
            raise refuse(f"has more than {_ELEMENTS:,} elements")
        if element.tag in _REFUSED:
            raise refuse(f"holds <{element.tag}>")
        for name, value in element.attrib.items():
            if name.startswith("file") and not (name == "file" and element in files and _is_own_file(value)):
                raise refuse(f"names a file outside robosuite: {value[:80]}")
            if name == "memory" or (name in _SIZES and not _is_at_most(value, _SIZES[name])):
                raise refuse(f"asks for {name} {value[:20]}")


def _is_own_file(name: str) -> bool:
    """Whether robosuite looks for a file of a model in its own folder, and nowhere above it."""
    head, found, tail = name.rpartition("robosuite/")
    inside = posixpath.normpath(tail)
    return bool(found) and (not head or head.endswith("/")) and not inside.startswith(("..", "/")) and "\0" not in name


def _is_at_most(value: str, most: int) -> bool:
    return value.lstrip("-").isdecimal() and int(value) <= most


def require_known_arguments(env_args: Mapping[str, Any], controllers: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``env_args`` of a file with the arguments that an environment may be made with.

    Args:
        env_args: RoboMimic's description of the environment, as the file has it.
        controllers: configuration that stands in for one in a layout of before robosuite 1.5, which no later one reads.
            States are looked at; they do not depend on it.
        path: named in errors.

    Raises:
        DataError: an argument that is not known, or is of another type than robosuite's.

    """
    kwargs = env_args.get("env_kwargs")
    if not isinstance(kwargs, Mapping):
        raise DataError(f"{path}: env_kwargs in env_args is no JSON object", fix="correct the attribute env_args")
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name.startswith(_DROPPED) or value is None:
            continue
        if name == "controller_configs":
            found[name] = _controllers(value, controllers, path)
        elif name not in _SIMPLE or not isinstance(value, _SIMPLE[name]) or not _is_plain(value):
            raise DataError(
                f"{path}: env_args say {name} = {str(value)[:60]}, with which no environment is made",
                expected=f"known: {', '.join(sorted((*_SIMPLE, 'controller_configs')))}",
                fix="correct the attribute env_args",
            )
        else:
            found[name] = value
    robots = found.get("robots", [])
    if len(robots) > 1 and not isinstance(robots, str):
        raise DataError(f"{path} has {len(robots)} robots", expected="one, whose observations are computed")
    return {**env_args, "env_kwargs": {"control_freq": 20, "ignore_done": True, "use_object_obs": True, **found}}


def _controllers(value: Any, instead: Mapping[str, Any], path: Path) -> Any:
    if not isinstance(value, (Mapping, list)) or not _is_plain(value):
        raise DataError(
            f"{path}: controller_configs in env_args is {str(value)[:60]}",
            expected="the configuration itself: files that are named are not read",
        )
    return value if isinstance(value, Mapping) and "body_parts" in value else instead


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is made of finite numbers, short words, lists and objects."""
    if isinstance(value, Mapping):
        return depth < 6 and all(isinstance(k, str) and _is_plain(v, depth + 1) for k, v in value.items())
    if isinstance(value, list):
        return depth < 6 and len(value) < 100 and all(_is_plain(each, depth + 1) for each in value)
    if isinstance(value, str):
        return re.fullmatch(r"[\w -]{0,60}", value) is not None
    return value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value))
