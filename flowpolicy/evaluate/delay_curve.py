"""Success against the time that the policy takes, with and without real-time chunking, before any hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import write_json
from flowpolicy.core.protocols import VecEnv
from flowpolicy.envs.delay import Delay, DelayedVecEnv, delay_steps
from flowpolicy.evaluate.figures import BLUE, GREEN, ORANGE, save_figure, scores, tidy
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.rollout import Episode, rollout
from flowpolicy.evaluate.statistics import Interval, bootstrap_mean, wilson
from flowpolicy.evaluate.tables import score
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.session import ActingPolicy, Execution

DELAYS_MS = (0.0, 50.0, 100.0, 200.0)


class Way(NamedTuple):
    """A way of executing late chunks."""

    policy: ActingPolicy
    execution: Execution


def ways(policy: Policy) -> dict[str, Way]:
    """What a policy can do about delay: every one the plain ways, some real-time chunking."""
    found = {"naive": Way(policy, "naive"), "aligned": Way(policy, "aligned")}
    if policy.prefix:
        found["real-time, trained"] = Way(policy, "real_time")
    try:
        found["real-time, guided"] = Way(policy.guided(), "real_time")
    except ConfigError:
        return found  # no intermediate states to guide
    return found


@dataclasses.dataclass(frozen=True)
class DelayPoint:
    """Success of one way at one delay."""

    way: str
    """'naive', 'aligned', 'real-time, trained' or 'real-time, guided'."""
    delay_ms: float
    """Delay asked for."""
    steps: int
    """Delay in actions."""
    success: Interval | None
    """With Wilson's interval; None where the environment defines no success."""
    return_: Interval
    """Mean return with its bootstrap interval."""
    stale: float
    """Share of decisions on an observation too old for the chunk or the trained prefix."""
    length: float
    """Mean steps of an episode."""
    episodes: tuple[bool, ...]
    """Success of each planned episode."""


def delay_curve(
    policy: Policy,
    env: VecEnv,
    plan: EvaluationPlan,
    *,
    delays_ms: Sequence[float] = DELAYS_MS,
    jitter: int = 0,
    dropped: float = 0.0,
    only: Sequence[str] = (),
    progress: Callable[[Episode], None] | None = None,
) -> list[DelayPoint]:
    """Play one plan at every delay in every way that the policy can; without delay all ways are one.

    Args:
        policy: what to evaluate.
        env: undelayed.
        plan: the same for every point, so that points can be compared in pairs.
        delays_ms: from observation to action.
        jitter: see :class:`flowpolicy.envs.delay.Delay`.
        dropped: likewise.
        only: names of the ways to play; all unless given.
        progress: called with every episode as it ends.

    """
    points: list[DelayPoint] = []
    chosen = {name: way for name, way in ways(policy).items() if not only or name in only}
    for milliseconds in delays_ms:
        steps = delay_steps(milliseconds, env.spec.action.rate_hz)
        delayed = DelayedVecEnv(env, Delay(steps, jitter, dropped))
        undelayed = not (steps or jitter or dropped)
        for name, way in chosen.items():
            if undelayed and points and points[-1].delay_ms == milliseconds:
                points.append(dataclasses.replace(points[-1], way=name))
                continue
            episodes = rollout(way.policy, delayed, plan, progress=progress, execution=way.execution)
            points.append(_point(name, milliseconds, steps, episodes, env.spec.defines_success))
    return points


def _point(way: str, milliseconds: float, steps: int, episodes: Sequence[Episode], scored: bool) -> DelayPoint:
    outcomes = tuple(episode.success for episode in episodes)
    return DelayPoint(
        way=way,
        delay_ms=milliseconds,
        steps=steps,
        success=wilson(sum(outcomes), len(outcomes)) if scored else None,
        return_=bootstrap_mean([episode.return_ for episode in episodes]),
        stale=sum(episode.stale for episode in episodes) / sum(episode.chunks for episode in episodes),
        length=sum(episode.length for episode in episodes) / len(episodes),
        episodes=outcomes,
    )


def save_delay(points: Sequence[DelayPoint], path: Path, **record: Any) -> None:
    """Write the points and what belongs to them as JSON, atomically."""
    write_json(path, {"schema": 1, **record, "points": [dataclasses.asdict(point) for point in points]})


def delay_markdown(points: Sequence[DelayPoint]) -> str:
    """The curve as a Markdown section."""
    delays = list(dict.fromkeys(point.delay_ms for point in points))
    found = {(point.way, point.delay_ms): point for point in points}
    lines = [
        f"## {'Success' if points[0].success else 'Return'} against delay",
        "",
        "From observation to action. 'naive' executes a late chunk from its first row, 'aligned' skips what is past, "
        "'real-time' also continues the actions executed meanwhile.",
        "",
        "| way | " + " | ".join(f"{delay:g} ms" for delay in delays) + " |",
        "|---|" + "---:|" * len(delays),
    ]
    for way in dict.fromkeys(point.way for point in points):
        lines.append(f"| {way} | " + " | ".join(score(found[way, delay]) for delay in delays) + " |")
    return "\n".join([*lines, "", "![success over delay](delay.png)", ""])


def draw_delay(points: Sequence[DelayPoint], title: str, png: Path) -> None:
    """Success with Wilson bars over delay, one line per way, slightly apart so that none hides another."""
    styles = {
        "naive": (ORANGE, "s--"),
        "aligned": ("#666666", "^:"),
        "real-time, trained": (BLUE, "o-"),
        "real-time, guided": (GREEN, "D-"),
    }
    *_, label, limits = scores(points)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title)
    names = list(dict.fromkeys(point.way for point in points))
    widest = max(point.delay_ms for point in points) or 1.0
    for position, name in enumerate(names):
        mine = [point for point in points if point.way == name]
        found = scores(mine)
        shift = 0.012 * widest * (position - (len(names) - 1) / 2)
        colour, style = styles[name]
        axes.errorbar(
            [point.delay_ms + shift for point in mine],
            found.means,
            yerr=found.bars,
            fmt=style,
            color=colour,
            capsize=3,
            label=name,
        )
    axes.set(xlabel="delay from observation to action, ms", ylabel=label, ylim=limits)
    axes.set_xticks(sorted({point.delay_ms for point in points}))
    axes.legend(frameon=False)
    tidy(axes)
    save_figure(figure, png)
