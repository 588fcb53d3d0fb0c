"""What robosuite's controller configurations say of an action, in the words of a contract.

``env_args`` of RoboMimic files hold a configuration in one of three layouts:

- robosuite 1.0 to 1.4: the arm's controller itself, or a list with one for each robot; ``control_delta`` tells deltas
  from absolute poses, and there is no word for the frame, which is the world;
- from 1.5 on, what is given to ``robosuite.make``: ``body_parts.right``; ``input_type`` and ``input_ref_frame``;
- the layout of robosuite's own JSON files: ``body_parts.arms.right``, otherwise the same.

RoboMimic's published v1.5 files have the second layout with the ``control_delta`` of the first: 1.5 does not read that
word and takes ``delta`` in the frame of the base, its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowpolicy.core.errors import DataError
from flowpolicy.core.spec import UNSTATED, ActionSpec

ROTATIONS = {"OSC_POSE": "axis-angle", "IK_POSE": "axis-angle", "OSC_POSITION": UNSTATED}
"""Controllers of the tool -> how they take a rotation. The others move joints."""

SIZES = {"OSC_POSE": 7, "IK_POSE": 7, "OSC_POSITION": 4}
"""Action dimensions of one arm with a gripper."""


def action_of(env_args: Mapping[str, Any], size: int) -> ActionSpec:
    """The action convention that ``env_args`` of a RoboMimic file state; what they do not say stays unstated.

    Args:
        env_args: the JSON of the attribute.
        size: dimensions of an action.

    Raises:
        DataError: the words contradict each other, or are in no layout that is known.

    """
    stated = env_args.get("action_spec")
    if isinstance(stated, dict):  # our own recordings say it in full
        try:
            return ActionSpec(size, **stated)
        except TypeError as error:
            raise _not_understood(f"action_spec: {error}") from error
    kwargs = _mapping(env_args.get("env_kwargs"), "env_kwargs")
    rate = _number(kwargs.get("control_freq") or 0.0, "control_freq")
    arms = _arms(kwargs.get("controller_configs"))
    if not arms:
        return ActionSpec(size, rate_hz=rate)
    specs = {_of_arm(arm, modern, size, len(arms), rate) for arm, modern in arms}
    if len(specs) > 1:
        raise _not_understood("controller_configs has other controllers for one arm than for the other")
    return specs.pop()


def robot_of(env_args: Mapping[str, Any]) -> str:
    """The robots that ``env_args`` state, robosuite's names, e.g. 'Panda'."""
    if isinstance(stated := env_args.get("robot"), str) and stated:
        return stated
    robots = _mapping(env_args.get("env_kwargs"), "env_kwargs").get("robots")
    names = [robots] if isinstance(robots, str) else robots
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return UNSTATED
    return ", ".join(names)


def _arms(configs: Any) -> list[tuple[Mapping[str, Any], bool]]:
    """Configuration of every arm, and whether it is in the layout of 1.5 and later."""
    if configs is None or configs == {} or configs == []:
        return []
    found: list[tuple[Mapping[str, Any], bool]] = []
    for config in configs if isinstance(configs, list) else [configs]:
        config = _mapping(config, "controller_configs")
        if "body_parts" not in config:
            found.append((config, False))
            continue
        parts = dict(_mapping(config["body_parts"], "body_parts"))
        parts |= _mapping(parts.pop("arms", {}), "body_parts.arms")
        arms = {name: part for name, part in parts.items() if name in ("right", "left")}
        if others := sorted(set(parts) - set(arms)):
            raise _not_understood(f"controller_configs moves {', '.join(others)} beside the arms")
        found += [(_mapping(part, f"body_parts.{name}"), True) for name, part in arms.items()]
    return found


def _of_arm(arm: Mapping[str, Any], modern: bool, size: int, arms: int, rate: float) -> ActionSpec:
    kind = str(arm.get("type", ""))
    convention, frame = _convention(arm, modern)
    tool = kind in SIZES
    return ActionSpec(
        size,
        convention=convention if kind else UNSTATED,
        frame=(frame if tool else "joints") if kind else UNSTATED,
        units=_units(arm) if convention == "delta" and tool else UNSTATED,
        rotation=ROTATIONS.get(kind, UNSTATED),
        gripper="last dimension: -1 opens, +1 closes" if arms == 1 and size == SIZES.get(kind) else UNSTATED,
        rate_hz=rate,
        low=min(_some(arm.get("input_min", -1.0), "input_min")),
        high=max(_some(arm.get("input_max", 1.0), "input_max")),
        controller=_controller(arm, kind) if kind else UNSTATED,
    )


def _convention(arm: Mapping[str, Any], modern: bool) -> tuple[str, str]:
    """Delta or absolute, and the frame."""
    old = {True: "delta", False: "absolute", None: None}.get(arm.get("control_delta"), "?")
    new = arm.get("input_type")
    if old == "?" or new not in (None, "delta", "absolute"):
        raise _not_understood(f"control_delta is {arm.get('control_delta')!r}, input_type {new!r}")
    if old and new and old != new:
        raise DataError(
            f"the controller of the file contradicts itself: control_delta {arm['control_delta']}, input_type '{new}'",
            expected="both to say delta, or both absolute",
            fix="find out how the actions were executed, and correct env_args",
        )
    if modern and old == "absolute" and new is None:
        raise DataError(
            "the controller of the file says control_delta false in the layout of robosuite 1.5, "
            "which does not read that word and would execute deltas",
            expected="input_type 'absolute', or 'delta'",
            fix="find out how the actions were executed, and add input_type to env_args",
        )
    frame = arm.get("input_ref_frame")
    if modern:
        return new or "delta", str(frame or "base")
    return new or old or UNSTATED, str(frame or ("world" if new or old else UNSTATED))


def _controller(arm: Mapping[str, Any], kind: str) -> str:
    """Kind and gains: another stiffness lags and yields otherwise, under the same actions."""
    mode = arm.get("impedance_mode", "fixed")
    if mode != "fixed":
        return f"{kind}, {mode} impedance"
    stiffness = _shown(arm.get("kp", 150), "kp")
    damping = _shown(arm.get("damping_ratio", arm.get("damping", 1)), "damping_ratio")
    return f"{kind}, stiffness kp {stiffness}, damping ratio {damping}"


def _units(arm: Mapping[str, Any]) -> str:
    high = np.atleast_1d(_numbers(arm.get("output_max", []), "output_max"))
    if high.size < 3:
        return UNSTATED
    rotation = f", {high[3]:g} rad" if high.size >= 6 else ""
    return f"1 stands for {high[0]:g} m{rotation} per step"


def _shown(value: Any, name: str) -> str:
    """A number, or numbers that are all the same, as one; others one after the other."""
    numbers = np.atleast_1d(_numbers(value, name))
    return " ".join(f"{number:g}" for number in (numbers[:1] if len(set(numbers.tolist())) == 1 else numbers))


def _numbers(value: Any, name: str) -> Any:
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise _not_understood(f"{name} is {value!r}") from error
    if numbers.ndim > 1:
        raise _not_understood(f"{name} is {value!r}")
    return numbers


def _some(value: Any, name: str) -> list[float]:
    """One number or more."""
    numbers: list[float] = np.atleast_1d(_numbers(value, name)).tolist()
    if not numbers:
        raise _not_understood(f"{name} is {value!r}")
    return numbers


def _number(value: Any, name: str) -> float:
    numbers = _numbers(value, name)
    if numbers.size != 1:
        raise _not_understood(f"{name} is {value!r}")
    return float(numbers.reshape(-1)[0])


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _not_understood(f"{name} is {value!r}")
    return value


def _not_understood(what: str) -> DataError:
    return DataError(
        f"env_args state a controller that is not understood: {what}",
        expected="one of robosuite's layouts: the controller itself (1.0 to 1.4), body_parts.right, or "
        "body_parts.arms.right (1.5)",
        fix="correct env_args in the file, or leave the controller out and train with --data.accept unstated",
    )
