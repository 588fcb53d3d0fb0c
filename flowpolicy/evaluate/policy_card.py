"""The card of a policy: success against network evaluations against latency, on one plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import write_text
from flowpolicy.core.protocols import VecEnv
from flowpolicy.evaluate.figures import BLUE, ORANGE, save_figure, scores, tidy
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.report import Evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import ActingPolicy, Episode, rollout
from flowpolicy.evaluate.tables import microseconds, number, percent

NFES = (1, 2, 4, 8, 16)


def card(
    policy: ActingPolicy,
    env: VecEnv,
    plan: EvaluationPlan,
    folder: Path,
    *,
    run: str = "",
    nfes: Sequence[int] = NFES,
    progress: Callable[[Episode], None] | None = None,
    device: torch.device | str = "cpu",
    **about: Any,
) -> list[Evaluation]:
    """Evaluate ``policy`` at each of ``nfes`` that it supports; write JSON, ``card.md`` and ``card.png``.

    Args:
        policy: what to evaluate.
        env: where; see :func:`flowpolicy.evaluate.rollout.rollout`.
        plan: the same for every number of evaluations.
        folder: usually ``RUN/card``.
        run: run folder, for the titles.
        nfes: network evaluations per chunk to try, in rising order.
        progress: called with every episode as it ends.
        device: where the policy lives.
        about: step, hashes, command and training, as :func:`flowpolicy.evaluate.report.make_evaluation` takes them.

    Raises:
        ConfigError: the policy supports none of ``nfes``.

    """
    evaluations = []
    for nfe in supported(policy, nfes, device):
        episodes = rollout(policy, env, plan, nfe=nfe, progress=progress, device=device)
        about["simulation"] = getattr(env, "simulation", "")
        made = make_evaluation(plan, episodes, run=run, success_defined=env.spec.defines_success, **about)
        evaluations.append(made)
        save_evaluation(folder / f"nfe_{nfe}.json", made)
    title = card_title(run, about.get("step", 0), plan)
    write_text(folder / "card.md", card_markdown(evaluations, title))
    draw_card(evaluations, title, folder / "card.png")
    return evaluations


def supported(policy: ActingPolicy, nfes: Sequence[int], device: torch.device | str = "cpu") -> list[int]:
    """Those of ``nfes`` in which the policy's sampler can act, found by asking it on zero observations."""
    contract, found, reason = policy.contract, [], ""
    obs = {
        key: torch.zeros(1, contract.history, *spec.shape, device=device)
        for key, spec in contract.spec.observation.items()
    }
    for nfe in nfes:
        try:
            policy.act(obs, torch.Generator(device=device).manual_seed(0), nfe)
        except ConfigError as error:
            reason = error.what
        else:
            found.append(nfe)
    if not found:
        raise ConfigError(f"the policy supports none of {list(nfes)} network evaluations", expected=reason)
    return found


def card_title(run: str, step: int, plan: EvaluationPlan) -> str:
    """What the pictures of a card are about."""
    return f"{Path(run).name or 'policy'} at step {step:,} on {plan.env_id}, {len(plan.indices)} episodes"


def card_markdown(evaluations: Sequence[Evaluation], title: str) -> str:
    """The card as a Markdown table."""
    lines = [
        f"# {title}",
        "",
        f"Plan `{evaluations[0].plan.digest[:12]}`, checkpoint step {evaluations[0].step} "
        f"(`{evaluations[0].checkpoint_sha256[:12] or 'no hash'}`). Intervals are 95 %: "
        "Wilson for success, bootstrap for the return. Latency is one decision at batch 1, first one excluded.",
        "",
        "| NFE | success | return | latency p50 / p99, us |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {e.nfe} | {percent(e.success)} | {number(e.return_)} | {microseconds(e.latency)} |" for e in evaluations
    ]
    return "\n".join([*lines, "", "![success and latency over NFE](card.png)", ""])


def draw_card(evaluations: Sequence[Evaluation], title: str, png: Path) -> None:
    """What counts above, latency below, over the number of network evaluations."""
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    nfes = [e.nfe for e in evaluations]
    found = scores(evaluations)
    upper.errorbar(nfes, found.means, yerr=found.bars, fmt="o-", color=BLUE, capsize=4)
    upper.set(ylabel=found.label, ylim=found.limits)
    timed = [(e.nfe, e.latency) for e in evaluations if e.latency]
    for percentile, colour, marker in (("p50_us", BLUE, "o-"), ("p99_us", ORANGE, "s--")):
        times = [getattr(latency, percentile) / 1000 for _, latency in timed]
        lower.plot([nfe for nfe, _ in timed], times, marker, color=colour, label=percentile.removesuffix("_us"))
    lower.set(ylabel="decision latency, ms", xlabel="network evaluations per chunk (NFE)", xscale="log")
    lower.set_ylim(bottom=0.0)
    lower.legend(frameon=False)
    lower.xaxis.set_major_locator(FixedLocator(nfes))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.set_xticks(nfes, [str(nfe) for nfe in nfes])
    for axes in (upper, lower):
        tidy(axes)
    save_figure(figure, png)
