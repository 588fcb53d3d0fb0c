"""``flowpolicy groups make RUN`` and ``picture RUN``: candidates for post-training, and how a run fared."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import require_free
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.ranges import Count, Few, Natural, NonNegative, Seed, Share, Workers

Source = Literal["critic", "simulator", "returns"]


def run(argv: Sequence[str]) -> int:
    """Make a group file, or draw the picture of a post-training."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "make": ("candidate chunks of a run with scores, for --groups of the presets gdro-*", make),
        "picture": ("training reward, corrected score and true success of a post-training", picture),
    }
    name, rest = pick(argv, commands, "groups", "action")
    return call(commands[name][1], rest, f"groups {name}")


@dataclasses.dataclass(frozen=True)
class Making:
    """What is scored, and how."""

    source: Source
    """Critic: values of a value-learning run, offline. Simulator: every candidate is executed from its stored state
    and the base finishes; report such results apart. Returns: what followed similar states in the data, offline."""
    out: Path
    """File to write."""
    states: Count = 1000
    """States of the dataset that get candidates."""
    span: tuple[Share, Share] = (0.0, 1.0)
    """Part of every episode that the states are taken from, as fractions of its length. Where chunks decide little,
    labels say little: 0 0.3 for a pick that is decided before the grasp."""
    candidates: Few = 8
    """Chunks per state, the data's among them; at least 4."""
    seed: Seed = 0
    """Same seed, same file content, whatever the number of workers."""
    held_out_share: Share = 0.2
    """Share of the episodes whose states are not trained on; there the result is judged."""
    data: Path | None = None
    """Dataset file; that of the run unless given."""
    nfe: Few | None = None
    """Network evaluations per candidate; the run's unless given."""
    candidate_noise: tuple[NonNegative, NonNegative] = (1.0, 1.0)
    """Scale of the noise that the base's candidates start from, first to last in even steps: 1 1 samples the
    base's law, 0 1 ranges from zero noise to all of it. Where a policy fails by its own noise, 0 1 shows it."""
    critic: Path | None = None
    """Source critic: run of fql, ifql, iql, qc, rebrac, fisher or mean-flow-q on the same data."""
    held_out: Path | None = None
    """Source critic: another such run (other seed, other half of the episodes) that judges; without it the networks
    that the critic itself held out (--agent.critic.held-out)."""
    caution: NonNegative = 1.0
    """Deviations of the ensemble that are subtracted from its mean."""
    rollouts: Few = 2
    """Source simulator: completions per candidate."""
    limit: Natural = 0
    """Source simulator: steps from the state after which a rollout has failed (0: the horizon's). Too small
    a limit calls slow successes failures."""
    completion_noise: NonNegative | Literal["own"] = 1.0
    """Source simulator: scale of the base's noise while it finishes. At 0 nothing but the candidate differs between the
    rollouts of a group. 'own' goes on at the scale that the candidate started from: where one chunk decides little, it
    then stands for a way to act, and the label says how acting that way ends."""
    discount: Share = 0.99
    """Source returns: discount of the rewards to go."""
    workers: Workers | None = None
    """Source simulator: processes; one per core unless given."""
    overwrite: bool = False
    """Replace an existing file at --out."""
    device: str = "cpu"
    """Where the base generates its candidates: cpu or a CUDA device. Rollouts of the simulator stay on the CPU."""


def make(run: Annotated[Path, tyro.conf.Positional], /, options: Annotated[Making, tyro.conf.arg(name="")]) -> None:
    """Score candidate chunks of a run, for post-training. Candidate 0 of every state is the data's own chunk.

    Simulator labels are kept in OUT.labels as they come; stopped, the same command goes on after the last one.

    Args:
        run: base run, a dm1 or flow-bc one: it generates the candidates.
        options: what is scored, and how.

    """
    _require_sensible(options)
    require_free(options.out, options.overwrite)
    from flowpolicy.agents.groups.group_file import describe_groups, read_groups, write_groups
    from flowpolicy.data.dataset_report import print_rows
    from flowpolicy.train import group_sources

    request = group_sources.open_request(
        run,
        data=options.data,
        states=options.states,
        span=options.span,
        candidates=options.candidates,
        seed=options.seed,
        share=options.held_out_share,
        nfe=options.nfe,
        noise_scale=options.candidate_noise,
        device=options.device,
    )
    out, labels = options.out, options.out.with_name(f"{options.out.name}.labels")
    with progress_bar(f"groups {options.source}", options.states) as move:
        if options.source == "critic":
            critic = options.critic or Path()
            groups = group_sources.by_critic(request, critic, options.held_out, options.caution)
        elif options.source == "returns":
            groups = group_sources.by_returns(request, options.discount, options.caution)
        else:
            groups = group_sources.by_simulator(
                request,
                rollouts=options.rollouts,
                limit=options.limit,
                completion=options.completion_noise,
                caution=options.caution,
                workers=options.workers,
                journal=labels,
                progress=lambda done: move(done, ""),
            )
        move(options.states, "")
    write_groups(out, groups)
    if options.source == "simulator":
        labels.unlink(missing_ok=True)
    print_rows(str(out), describe_groups(read_groups(out)), console())


def _require_sensible(options: Making) -> None:
    if options.candidates < 4 or options.states < 2:
        raise ConfigError(
            f"--candidates {options.candidates} --states {options.states}",
            expected="at least 4 candidates (pairs collapse) and 2 states",
        )
    if options.source == "returns" and options.candidate_noise != (1.0, 1.0):
        raise ConfigError("--candidate-noise has no meaning: the candidates of returns come from the data")
    if options.completion_noise == 0 and options.rollouts > 1:
        raise ConfigError(
            f"--completion-noise 0 makes the {options.rollouts} rollouts of a candidate the same",
            fix="add --rollouts 1",
        )
    if options.source == "critic" and options.critic is None:
        raise ConfigError(
            "--source critic needs a trained critic",
            expected="--critic RUN",
            fix="train one on the same file, e.g. flowpolicy train iql-* --agent.critic.held-out 2",
        )


def picture(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    episodes: Natural = 0,
    seed: Seed = 0,
    out: str = "",
    device: str = "cpu",
) -> None:
    """Draw training reward, corrected score and, with --episodes, true success of a post-training.

    Args:
        run: run of a preset gdro-*.
        episodes: planned episodes per stored checkpoint (--keep-checkpoints 0 keeps all); 0 plays none. For looking
            at, not for choosing: the corrected score chooses.
        seed: seed of the plan.
        out: picture; RUN/corrected.png unless given.
        device: where the policy plays: cpu or a CUDA device.

    """
    from flowpolicy.train.post_training_figure import draw_corrected, success_along

    png = Path(out) if out else run / "corrected.png"
    success = success_along(run, episodes, seed, device) if episodes else []
    draw_corrected(run / "metrics.csv", png, success, episodes)
    sys.stdout.write(f"picture {png}\n")
