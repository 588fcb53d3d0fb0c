"""``flowpolicy groups make RUN`` and ``picture RUN``: candidates for post-training, and how a run fared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.commands.progress import progress_bar
from flowpolicy.core.errors import ConfigError

if TYPE_CHECKING:
    from flowpolicy.commands.group_sources import Request  # brings torch, seconds of every --help

Source = Literal["critic", "simulator", "returns"]


def run(argv: Sequence[str]) -> int:
    """Make a group file, or draw the picture of a post-training."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "make": ("candidate chunks of a run with scores, for --groups of the presets gdro-*", make),
        "picture": ("training reward, corrected score and true success of a post-training", picture),
    }
    name, rest = pick(argv, commands, "groups", "action")
    return call(commands[name][1], rest, f"groups {name}")


def make(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    source: Source,
    out: Path,
    states: int = 1000,
    span: tuple[float, float] = (0.0, 1.0),
    candidates: int = 8,
    seed: int = 0,
    held_out_share: float = 0.2,
    data: Path | None = None,
    nfe: int | None = None,
    critic: Path | None = None,
    held_out: Path | None = None,
    caution: float = 1.0,
    rollouts: int = 2,
    limit: int = 0,
    discount: float = 0.99,
    workers: int | None = None,
) -> None:
    """Score candidate chunks of a run, for post-training. Candidate 0 of every state is the data's own chunk.

    Simulator labels are kept in OUT.labels as they come; stopped, the same command goes on after the last one.

    Args:
        run: base run, a dm1 or flow-bc one: it generates the candidates.
        source: critic (values of a value-learning run; offline), simulator (execute each candidate from its stored
            state and let the base finish; report such results apart) or returns (what followed similar states in
            the data; offline, no critic).
        out: file to write.
        states: states of the dataset that get candidates.
        span: part of every episode that the states are taken from, as fractions of its length. Where chunks decide
            little, labels hold little: 0 0.3 for a pick that is decided before the grasp.
        candidates: chunks per state, the data's among them; at least 4.
        seed: same seed, same file content, whatever the number of workers.
        held_out_share: share of the episodes whose states are not trained on; there the result is judged.
        data: dataset file; that of the run unless given.
        nfe: network evaluations per candidate; the run's unless given.
        critic: source critic: run of fql, ifql, iql, qc, rebrac, fisher or mean-flow-q on the same data.
        held_out: source critic: another such run (other seed, other half of the episodes) that judges; without it
            the networks that the critic itself held out (--agent.critic.held-out).
        caution: deviations of the ensemble that are subtracted from its mean.
        rollouts: source simulator: completions per candidate.
        limit: source simulator: steps from the state after which a rollout has failed (0: the horizon's). One that
            slow successes exceed calls them failures.
        discount: source returns: of the rewards to go.
        workers: source simulator: processes; one per core unless given.

    """
    _require_sensible(source, states, candidates, rollouts, limit, critic)
    from flowpolicy.commands import group_sources
    from flowpolicy.data.groups import describe_groups, read_groups, write_groups
    from flowpolicy.data.report import print_rows

    request: Request = group_sources.open_request(
        run, data=data, states=states, span=span, candidates=candidates, seed=seed, share=held_out_share, nfe=nfe
    )
    labels = out.with_name(f"{out.name}.labels")
    with progress_bar(f"groups {source}", states) as move:
        if source == "critic":
            groups = group_sources.by_critic(request, critic or Path(), held_out, caution)
        elif source == "returns":
            groups = group_sources.by_returns(request, discount, caution)
        else:
            groups = group_sources.by_simulator(
                request,
                rollouts=rollouts,
                limit=limit,
                caution=caution,
                workers=workers,
                journal=labels,
                progress=lambda done: move(done, ""),
            )
        move(states, "")
    write_groups(out, groups)
    if source == "simulator":
        labels.unlink(missing_ok=True)
    print_rows(str(out), describe_groups(read_groups(out)), console())


def _require_sensible(
    source: Source, states: int, candidates: int, rollouts: int, limit: int, critic: Path | None
) -> None:
    if candidates < 4 or states < 2 or rollouts < 1 or limit < 0:
        raise ConfigError(
            f"--candidates {candidates} --states {states} --rollouts {rollouts} --limit {limit}",
            expected="at least 4 candidates (pairs collapse), 2 states, 1 rollout, no negative limit",
        )
    if source == "critic" and critic is None:
        raise ConfigError(
            "--source critic needs a trained critic",
            expected="--critic RUN",
            fix="train one on the same file, e.g. flowpolicy train iql-* --agent.critic.held-out 2",
        )


def picture(run: Annotated[Path, tyro.conf.Positional], /, episodes: int = 0, seed: int = 0, out: str = "") -> None:
    """Draw training reward, corrected score and, with --episodes, true success of a post-training.

    Args:
        run: run of a preset gdro-*.
        episodes: planned episodes per stored checkpoint (--keep-checkpoints 0 keeps all); 0 plays none. For looking
            at, not for choosing: the corrected score chooses.
        seed: seed of the plan.
        out: picture; RUN/corrected.png unless given.

    """
    from flowpolicy.commands.group_sources import success_along
    from flowpolicy.evaluate.corrected_figure import draw_corrected

    png = Path(out) if out else run / "corrected.png"
    success = success_along(run, episodes, seed) if episodes else []
    draw_corrected(run / "metrics.csv", png, success)
    sys.stdout.write(f"picture {png}\n")
