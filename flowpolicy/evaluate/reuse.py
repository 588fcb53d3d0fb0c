"""Success against the network evaluations that reuse saves: similar observations, warm starts, stream batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import write_json
from flowpolicy.core.protocols import VecEnv
from flowpolicy.evaluate.figures import BLUE, GREEN, ORANGE, save_figure, scores, tidy
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.rollout import Episode, rollout
from flowpolicy.evaluate.statistics import Interval, bootstrap_mean, wilson
from flowpolicy.evaluate.tables import score
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.reuse import Decider, Skipping
from flowpolicy.policy.stream import StreamBatch
from flowpolicy.policy.warm_start import WarmStart

KAPPAS = (0.1, 0.3, 1.0)
MOST = 5
"""Skips in a row."""
MULTI_STEP = 10
"""Evaluations of a policy whose contract says one, where it can take several: there is nothing to save in one."""


@dataclasses.dataclass(frozen=True)
class ReusePoint:
    """Success of one way of reusing work."""

    way: str
    """'none', 'similarity', 'warm start' or 'stream batch'."""
    setting: float
    """Distance kappa, normalised units; chunks in flight of a stream."""
    nfe: int
    """Evaluations of a full generation."""
    evaluations: float
    """Calls of the network per decision, measured; a call of a stream holds several rows."""
    success: Interval | None
    """With Wilson's interval; None where the environment defines no success."""
    return_: Interval
    """Mean return with its bootstrap interval."""
    episodes: tuple[bool, ...]
    """Success of each planned episode."""


def deciders(policy: Policy, nfe: int, kappas: Sequence[float], most: int) -> dict[tuple[str, float], Any]:
    """(way, setting) -> what makes a decider for one episode; None is the policy itself. Only ways it can go."""
    ways: dict[tuple[str, float], Callable[[], Decider] | None] = {("none", 0.0): None}
    for kappa in kappas:
        ways["similarity", kappa] = partial(Skipping, policy, kappa, most)
    for kappa in kappas if nfe > 1 else ():
        ways["warm start", kappa] = partial(WarmStart, policy, kappa)
    if nfe > 1:
        ways["stream batch", float(nfe)] = partial(StreamBatch, policy, nfe)
    return {key: make for key, make in ways.items() if make is None or _possible(make)}


def _possible(make: Callable[[], Decider]) -> bool:
    try:
        make()
    except ConfigError:
        return False
    return True


def reuse_curve(
    policy: Policy,
    env: VecEnv,
    plan: EvaluationPlan,
    nfe: int,
    *,
    kappas: Sequence[float] = KAPPAS,
    most: int = MOST,
    progress: Callable[[Episode], None] | None = None,
) -> list[ReusePoint]:
    """Play one plan in every way that the policy can go; see :func:`deciders`.

    Args:
        policy: what to evaluate.
        env: where.
        plan: the same for every point, so that points can be compared in pairs.
        nfe: evaluations of a full generation.
        kappas: distances to try.
        most: skips in a row.
        progress: called with every episode as it ends.

    """
    points = []
    for (way, setting), make in deciders(policy, nfe, kappas, most).items():
        episodes = rollout(policy, env, plan, nfe=nfe, decider=make, progress=progress)
        outcomes = tuple(episode.success for episode in episodes)
        calls = sum(e.evaluations for e in episodes) / sum(e.chunks for e in episodes)
        success = wilson(sum(outcomes), len(outcomes)) if env.spec.defines_success else None
        returns = bootstrap_mean([episode.return_ for episode in episodes])
        points.append(ReusePoint(way, setting, nfe, calls, success, returns, outcomes))
    return points


def save_reuse(points: Sequence[ReusePoint], path: Path, **record: Any) -> None:
    """Write the points and what belongs to them as JSON, atomically."""
    write_json(path, {"schema": 1, **record, "points": [dataclasses.asdict(point) for point in points]})


def reuse_markdown(points: Sequence[ReusePoint]) -> str:
    """The points as a Markdown section."""
    counts = "success" if points[0].success else "return"
    lines = [
        f"## {counts.capitalize()} against evaluations saved",
        "",
        f"A full generation takes {points[0].nfe}. 'similarity' gives the last chunk again where the observation is "
        "within half of kappa of its own; 'warm start' begins with the last chunk, the nearer the less has moved; "
        "'stream batch' keeps that many chunks in flight, a call of several rows per decision.",
        "",
        "| way | kappa or chunks | network calls per decision | saved | " + counts + " |",
        "|---|---:|---:|---:|---:|",
    ]
    for point in points:
        saved = 100 * (1 - point.evaluations / point.nfe)
        lines.append(f"| {point.way} | {point.setting:g} | {point.evaluations:.2f} | {saved:.0f} % | {score(point)} |")
    return "\n".join([*lines, "", "![success over network calls](reuse.png)", ""])


def draw_reuse(points: Sequence[ReusePoint], title: str, png: Path) -> None:
    """Success with Wilson bars over network calls per decision, one marker per way."""
    styles = {
        "none": ("black", "*"),
        "similarity": (BLUE, "o-"),
        "warm start": (ORANGE, "s-"),
        "stream batch": (GREEN, "D"),
    }
    *_, label, limits = scores(points)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title)
    for way in dict.fromkeys(point.way for point in points):
        mine = sorted((point for point in points if point.way == way), key=lambda point: point.evaluations)
        found = scores(mine)
        colour, style = styles[way]
        axes.errorbar(
            [point.evaluations for point in mine],
            found.means,
            yerr=found.bars,
            fmt=style,
            color=colour,
            capsize=3,
            label=way,
        )
    axes.set(xlabel="network calls per decision", ylabel=label, ylim=limits)
    axes.set_xlim(left=0.0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    tidy(axes)
    save_figure(figure, png)
