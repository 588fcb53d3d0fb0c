"""Named suites: several arms on several tasks under one budget. Values, no logic."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a suite's table: a preset family and the flags that make it this arm."""

    preset: str
    """First part of the preset's name; the task is the second."""
    flags: tuple[str, ...] = ()
    """Further flags of ``flowpolicy train``."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is compared with what. Everything that is not named by an arm is equal for all."""

    description: str
    arms: dict[str, Arm]
    tasks: dict[str, int]
    """Task -> episodes of its training file, which ``flowpolicy data make`` generates with seed 0; 0 for a published
    file that the user puts there."""
    flags: tuple[str, ...]
    """Flags of ``flowpolicy train`` for every arm: the common budget."""
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

SUITES = {
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
    "debug": Suite(
        "FQL on toy data, for tests: seconds",
        arms={
            "fql": Arm("fql"),
            "fql-strong": Arm("fql", ("--agent.alpha", "10")),
        },
        tasks={"toy": 20},
        flags=("--steps", "20", "--batch-size", "16"),
        seeds=2,
        episodes=3,
    ),
}
"""Suite name -> suite."""
