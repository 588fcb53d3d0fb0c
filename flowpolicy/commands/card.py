"""``flowpolicy card RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.console import console
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.ranges import Count, Natural, NonNegative, Seed, Share

if TYPE_CHECKING:
    from flowpolicy.core.protocols import VecEnv
    from flowpolicy.evaluate.plan import EvaluationPlan
    from flowpolicy.policy.policy import Policy


def run(argv: Sequence[str]) -> int:
    """Make the card of a run."""
    return call(card, argv, "card")


def card(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    episodes: Count = 50,
    seed: Seed = 0,
    delay: bool = False,
    delays_ms: tuple[NonNegative, ...] = (0.0, 50.0, 100.0, 200.0),
    jitter: Natural = 0,
    dropped: Share = 0.0,
    device: str = "cpu",
) -> None:
    """Success against network evaluations against latency: a table and RUN/card/card.png.

    Args:
        run: run folder (its newest checkpoint) or checkpoint folder; the card of an older checkpoint goes to a folder
            of its own in RUN/card, and so does an earlier card of other weights or another plan when a new one is made.
        episodes: planned initial states, the same for every number of evaluations.
        seed: seed of the plan.
        delay: also success against delay, with and without real-time chunking: RUN/card/delay.png. Takes as long as
            several cards.
        delays_ms: delays from observation to action.
        jitter: with --delay: up to this many extra actions of delay, drawn for every observation.
        dropped: with --delay: share of observations that never arrive.
        device: where the policy acts: cpu or a CUDA device.

    """
    from flowpolicy.core import checkpoint
    from flowpolicy.core.remote_run import push_beside
    from flowpolicy.core.run_places import run_name
    from flowpolicy.evaluate.evaluation import loaded
    from flowpolicy.evaluate.plan import make_plan
    from flowpolicy.evaluate.policy_card import NFES, supported
    from flowpolicy.evaluate.policy_card import card as draw
    from flowpolicy.evaluate.records import acted, card_name, make_way

    with loaded(run, device) as (policy, env, folder):
        plan = make_plan(env.spec.env_id, episodes, seed)
        done = 0
        with progress_bar(f"card {run_name(run)}", episodes * len(supported(policy, NFES, device))) as move:

            def progress(_: object) -> None:
                nonlocal done
                done += 1
                move(done, "")

            about = acted(folder, policy.contract, typed(), policy.parameters_count)
            home, name = checkpoint.run_of(folder), card_name(about["step"], about["checkpoint_sha256"], plan)
            place = home / "card"
            if checkpoint.newest(home) in ("", folder.name):
                make_way(place, name)
            else:
                place = place / name
            draw(policy, env, plan, place, run=run_name(run), progress=progress, device=device, **about)
            training = about.pop("training")
            record: dict[str, Any] = {"run": run_name(run), **about, "training": training["experiment"]}
            record["dataset_sha256"] = training["dataset_sha256"]
        if delay:
            _delay(policy, env, plan, place, delays_ms, {**record, "jitter": jitter, "dropped": dropped})
    push_beside(home, *sorted(path for path in place.iterdir() if path.is_file()))
    _show(place, ["card", *(["delay"] if delay else [])])


def _show(folder: Path, drawn: Sequence[str]) -> None:
    from rich.markdown import Markdown

    for name in drawn:
        console().print(Markdown((folder / f"{name}.md").read_text(encoding="utf-8").split("![")[0]))
    for name in reversed(drawn):
        sys.stdout.write(f"picture {folder / f'{name}.png'}\n")


def _delay(
    policy: Policy,
    env: VecEnv,
    plan: EvaluationPlan,
    folder: Path,
    delays_ms: tuple[float, ...],
    record: dict[str, Any],
) -> None:
    """The curve of success against delay."""
    from flowpolicy.core.files import write_text
    from flowpolicy.core.spec import library_versions
    from flowpolicy.evaluate.delay_curve import delay_curve, delay_markdown, draw_delay, save_delay, ways
    from flowpolicy.evaluate.policy_card import card_title
    from flowpolicy.evaluate.report import git_commit

    episodes = len(plan.indices)
    options = {name: record[name] for name in ("jitter", "dropped")}
    undelayed = 0 if any(options.values()) else list(delays_ms).count(0.0)  # played once for all ways
    rollouts = undelayed + (len(delays_ms) - undelayed) * len(ways(policy))
    with progress_bar(f"delay {record['run']}", episodes * rollouts) as move:
        done = 0

        def progress(_: object) -> None:
            nonlocal done
            done += 1
            move(done, "")

        points = delay_curve(policy, env, plan, delays_ms=delays_ms, progress=progress, **options)
    about = {"commit": git_commit(), "versions": library_versions(), "plan": plan.to_json()}
    save_delay(points, folder / "delay.json", **record, **about)
    write_text(folder / "delay.md", delay_markdown(points))
    title = card_title(record["run"], record["step"], plan)
    title += "".join(f", {name} {value:g}" for name, value in options.items() if value)
    draw_delay(points, title, folder / "delay.png")
