"""One picture of a post-training: what it was rewarded for, what it is worth, and what it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowpolicy.core.checkpoint import FOLDER
from flowpolicy.core.errors import ConfigError, EvaluationError
from flowpolicy.core.files import read_tensors
from flowpolicy.evaluate.curves import Curves, read_curves
from flowpolicy.evaluate.evaluation import counting, loaded
from flowpolicy.evaluate.figures import BLUE, GREEN, ORANGE, save_figure, tidy
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.rollout import rollout

WANTED = ("reward_gain", "held_out_gain", "corrected_gain", "hacking_gap", "unsupported", "kl", "best_update")


def draw_corrected(metrics_csv: Path, png: Path, success: Sequence[tuple[int, float]] = (), episodes: int = 0) -> None:
    """Draw gains over the base against updates, the price of leaving the data's support, and true success.

    Args:
        metrics_csv: of a post-training run.
        png: where to.
        success: (update, rate) of checkpoints that were played in the simulator; empty leaves the panel out.
        episodes: how many each of them played.

    Raises:
        EvaluationError: the file lacks the columns of a post-training.

    """
    curves = read_curves(metrics_csv)
    missing = [name for name in WANTED if name not in curves]
    if missing:
        raise EvaluationError(
            f"{metrics_csv} has no column {', '.join(missing)}", expected="metrics of a run of a preset gdro-*"
        )
    panels = 3 if success else 2
    figure = Figure(figsize=(4.9 * panels, 3.6), layout="constrained")
    figure.suptitle(f"Post-training of {metrics_csv.resolve().parent.name}: {verdict(curves)}", fontsize=11)
    axes = figure.subplots(1, panels, squeeze=False).ravel()
    _draw_gains(axes[0], curves)
    _draw_distance(axes[1], curves)
    if success:
        _draw_success(axes[2], success, _chosen(curves), episodes)
    for each in axes:
        each.set_xlabel("gradient step")
        tidy(each)
    save_figure(figure, png)


def success_along(run: Path, episodes: int, seed: int, device: str = "cpu") -> list[tuple[int, float]]:
    """(update, success) of the averaged policy in every stored checkpoint, the base first, on one plan."""
    found: list[tuple[int, float]] = []
    with loaded(run, device) as (policy, env, _):
        if not env.spec.defines_success:
            raise ConfigError(f"{env.spec.env_id} defines no success to draw", fix="leave --episodes out")
        plan = make_plan(env.spec.env_id, episodes, seed)
        for folder in sorted((run / FOLDER).glob("step_*")):
            tensors = read_tensors(folder / "training.safetensors")
            parts = {"average.": int(folder.name.split("_")[1])} | ({} if found else {"reference.": 0})
            for prefix, update in sorted(parts.items(), key=lambda item: item[1]):
                weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                if not weights:
                    raise ConfigError(f"{run} is no post-training", expected="a run of a preset gdro-*")
                policy.actor.load_state_dict(weights)
                with counting(folder, plan, env.spec.defines_success) as progress:
                    played = rollout(policy, env, plan, progress=progress)
                found.append((update, sum(episode.success for episode in played) / episodes))
    return found


def verdict(curves: Curves) -> str:
    """In words: which update was chosen, and whether the held-out judge confirms where training ended.

    It does not where the hacking gap is above half of the gain in the training rewards
    (docs/methods/gdro.md#corrected-score).
    """
    chosen, gap, gain = (float(curves[name][-1]) for name in ("best_update", "hacking_gap", "reward_gain"))
    kept = f"update {chosen:.0f} is kept" if chosen else "the base is kept"
    return f"{kept}; the held-out judge does not confirm the end" if gap > 0.5 * max(gain, 0.0) and gap > 0.01 else kept


def _chosen(curves: Curves) -> float:
    return float(curves["best_update"][-1])


def _from_the_base(step: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with the base, which has 0 by construction, in front."""
    return np.concatenate([[0], step]), np.concatenate([[0.0], values])


def _draw_gains(axes: Axes, curves: Curves) -> None:
    named = (("reward_gain", "training judge", ORANGE, "--"), ("held_out_gain", "held-out judge", BLUE, ":"))
    for name, label, colour, style in (*named, ("corrected_gain", "corrected score", BLUE, "-")):
        axes.plot(*_from_the_base(curves["step"], curves[name]), style, color=colour, label=label)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.axvline(_chosen(curves), color=GREEN, linewidth=1.2, label="chosen")
    axes.set_title("gain over the base (scale units)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _draw_distance(axes: Axes, curves: Curves) -> None:
    for name, label, colour in (("kl", "divergence from the base", BLUE), ("unsupported", "outside the data", ORANGE)):
        axes.plot(curves["step"], curves[name], color=colour, label=label)
    axes.axvline(_chosen(curves), color=GREEN, linewidth=1.2)
    axes.set_title("nats per chunk", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _draw_success(axes: Axes, success: Sequence[tuple[int, float]], chosen: float, episodes: int) -> None:
    updates, rates = zip(*success, strict=True)
    axes.plot(updates, rates, "o-", color=GREEN, markersize=4, label="every stored checkpoint")
    axes.axvline(chosen, color=GREEN, linewidth=1.2)
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(f"true success in the simulator, {episodes} episodes each", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
