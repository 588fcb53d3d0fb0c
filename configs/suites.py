"""Named suites: several arms on several tasks under one budget. Values, no logic."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a suite's table: a preset family and the flags that make it this arm."""

    preset: str
    """First part of the preset's name; the task is the second."""
    flags: tuple[str, ...] = ()
    """Further flags of ``flowpolicy train``."""
    peer: str = ""
    """Public implementation that is trained in the preset's place; empty for our own agent."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is compared with what. Everything that is not named by an arm is equal for all."""

    description: str
    arms: dict[str, Arm]
    tasks: dict[str, int]
    """Task -> episodes of its training file, which ``flowpolicy data make`` generates with seed 0, with the cameras of
    the presets; 0 for a published file that the user puts there."""
    flags: tuple[str, ...] = ()
    """Flags of ``flowpolicy train`` for every arm: the common budget."""
    common: bool = True
    """Whether all arms have one budget. Where not, each has that of its preset, and the table says which."""
    score: Literal["success", "normalised"] = "success"
    """What is compared: the rate of success, or D4RL's normalised score."""
    reference: str = "fql"
    """Arm that the table compares every other with."""
    seeds: int = 3
    """Training seeds 0, 1, ... of every arm."""
    episodes: int = 50
    """Planned episodes of every evaluation (plan seed 0)."""


def _fisher(*flags: str, multi_step: bool = False) -> Arm:
    return Arm("fisher", (("--agent.base", "euler") if multi_step else ()) + flags)


# Isotropic and normalised metrics charge a mean square in action units; their budget is the released scripts' value.
_ISO = ("--agent.metric.mode", "iso", "--agent.budget", "0.001")
_PROXY = (
    *("--agent.metric.mode", "proxy", "--agent.metric.normalise", "state", "--agent.metric.samples", "8"),
    *("--agent.metric.damping", "1e-3", "--agent.budget", "0.001"),
)

PEER_ARMS = {
    "fql": Arm("fql", peer="fql"),
    "fisher": Arm("fisher", ("--agent.base", "euler", *_PROXY), peer="fisher"),
}
"""Peer -> its arm, which ``suite run --peer`` adds to any suite as PEER-official."""

OFFLINE_RL_ARMS = {
    "flow-bc": Arm("flow-bc"),
    "fql": Arm("fql"),
    "ifql": Arm("ifql"),
    # The best of 32 in every target would cost 320 velocity evaluations a row; 4 there, 32 when acting.
    "qc": Arm("qc", ("--agent.target-candidates", "4")),
    "mean-flow-q": Arm("mean-flow-q"),
    "fisher-score-2": _fisher(),
    "fisher-score-11": _fisher(multi_step=True),
    "fisher-curv-2": _fisher("--agent.metric.mode", "curv"),
    "fisher-curv-11": _fisher("--agent.metric.mode", "curv", multi_step=True),
    "fisher-kl2-2": _fisher("--agent.metric.mode", "kl2"),
    "fisher-kl2-11": _fisher("--agent.metric.mode", "kl2", multi_step=True),
    "fisher-iso-2": _fisher(*_ISO),
    "fisher-iso-11": _fisher(*_ISO, multi_step=True),
    "fisher-proxy-2": _fisher(*_PROXY),
    "fisher-proxy-11": _fisher(*_PROXY, multi_step=True),
}


def _dispersed(place: str) -> tuple[str, ...]:
    named = {"weight": "0.5", "place": place, "exclude-steps": "8"}
    return tuple(word for name, value in named.items() for word in (f"--agent.dispersive.{name}", value))


RL = ("iql", "ifql", "rebrac", "fql", "qc", "qc-fql", "mean-flow-q", "fisher", "fisher-released")
CLONING = ("regression", "flow-bc", "dm1")


def _published(
    description: str,
    arms: tuple[str, ...],
    tasks: tuple[str, ...],
    reference: str,
    score: Literal["success", "normalised"] = "success",
) -> Suite:
    """A suite of presets by the names of published files, each with the budget and the values of its preset."""
    named = {arm: Arm(arm) for arm in arms}
    return Suite(description, named, dict.fromkeys(tasks, 0), common=False, score=score, reference=reference)


SUITES = {
    "d4rl-locomotion": _published(
        "D4RL's nine usual locomotion files",
        (*CLONING, *RL),
        tuple(
            f"{env}-{kind}-v2"
            for env in ("halfcheetah", "hopper", "walker2d")
            for kind in ("medium", "medium-replay", "medium-expert")
        ),
        "iql",
        "normalised",
    ),
    "d4rl-adroit": _published(
        "D4RL's twelve Adroit files",
        (*CLONING, *RL),
        tuple(
            f"{task}-{kind}-v1"
            for task in ("pen", "door", "hammer", "relocate")
            for kind in ("human", "cloned", "expert")
        ),
        "iql",
        "normalised",
    ),
    "ogbench-manipulation": _published(
        "OGBench's manipulation, the default task of each environment",
        ("flow-bc", *RL),
        (
            "cube-single-play-singletask-task2-v0",
            "cube-double-play-singletask-task2-v0",
            "scene-play-singletask-task2-v0",
            "puzzle-3x3-play-singletask-task4-v0",
            "puzzle-4x4-play-singletask-task4-v0",
        ),
        "fql",
    ),
    "ogbench-navigation": _published(
        "OGBench's navigation, the default task of each environment",
        ("flow-bc", *RL),
        (
            "antmaze-large-navigate-singletask-task1-v0",
            "antmaze-giant-navigate-singletask-task1-v0",
            "humanoidmaze-medium-navigate-singletask-task1-v0",
            "humanoidmaze-large-navigate-singletask-task1-v0",
            "antsoccer-arena-navigate-singletask-task4-v0",
        ),
        "fql",
    ),
    "robomimic-lowdim": _published(
        "RoboMimic from states, proficient and mixed operators",
        (*CLONING, "mip", "iql", "fql", "qc", "qc-fql"),
        tuple(f"{task}-{kind}" for task in ("lift", "can", "square") for kind in ("ph", "mh")),
        "flow-bc",
    ),
    "robomimic-image": _published(
        "RoboMimic from two cameras, proficient operators",
        CLONING,
        ("lift-ph-image", "can-ph-image", "square-ph-image"),
        "flow-bc",
    ),
    "offline-rl": Suite(
        "Offline RL on OGBench data generated here: 50,000 updates of 64 rows, networks of 3 x 256",
        arms=OFFLINE_RL_ARMS,
        tasks={"cube-single": 300, "pointmaze-medium": 500},
        flags=("--steps", "50000", "--batch-size", "64"),
    ),
    "door-human": Suite(
        "Offline RL on D4RL's human door demonstrations, under the budget of offline-rl",
        arms={name: Arm(name) for name in ("iql", "fql", "fisher")},
        tasks={"door-human": 0},
        flags=(
            *("--steps", "50000", "--batch-size", "64", "--agent.net.width", "256", "--agent.net.depth", "3"),
            *("--agent.critic.width", "256", "--agent.critic.depth", "3"),
        ),
    ),
    # Neighbours within 8 steps need nearly the same chunk: they do not repel each other.
    "dispersion": Suite(
        "DM1's regulariser where demonstrations are few: Lift from two cameras, 20 of them, 600 updates",
        arms={
            "off": Arm("dm1", ("--agent.dispersive.weight", "0")),
            "features": Arm("dm1", _dispersed("features")),
            "trunk": Arm("dm1", _dispersed("trunk")),
        },
        tasks={"lift-image": 20},
        flags=("--steps", "600", "--checkpoint-every", "600", "--threads", "1", "--compile", "off"),
        reference="off",
    ),
    "debug": Suite(
        "FQL on toy data and on a maze (extra ogbench), for tests: seconds",
        arms={
            "fql": Arm("fql"),
            "fql-strong": Arm("fql", ("--agent.alpha", "10")),
        },
        tasks={"toy": 20, "pointmaze-medium": 5},
        flags=(
            *("--steps", "20", "--batch-size", "16", "--checkpoint-every", "5", "--agent.net.width", "64"),
            *("--agent.net.depth", "2", "--agent.critic.width", "64", "--agent.critic.depth", "2"),
        ),
        seeds=2,
        episodes=3,
    ),
}
"""Suite name -> suite."""
