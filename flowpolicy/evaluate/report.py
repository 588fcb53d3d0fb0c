"""The evaluation file: outcomes of every episode, and everything needed to repeat or compare them."""

from __future__ import annotations

import dataclasses
import io
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.files import read_json, write_json
from flowpolicy.core.spec import library_versions
from flowpolicy.envs import defines_success
from flowpolicy.evaluate.plan import EvaluationPlan, plan_from
from flowpolicy.evaluate.rollout import Episode
from flowpolicy.evaluate.statistics import Comparison, Interval, bootstrap_mean, compare_paired, wilson

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall time of a decision at batch 1, in microseconds."""

    p50_us: float
    """Median."""
    p99_us: float
    """99th percentile."""


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """One policy on one plan. Printed, it is a table of its figures."""

    plan: EvaluationPlan
    """Initial states and policy seeds."""
    episodes: tuple[Episode, ...]
    """Outcomes in plan order; decision times and frames are not kept in the file."""
    latency: Latency | None
    """Decision times; None where the rollout made a single decision."""
    run: str = ""
    """Run folder."""
    step: int = 0
    """Gradient step of the checkpoint."""
    checkpoint_sha256: str = ""
    """Hash of the checkpoint's manifest, which holds the hash of every file; empty in records of older versions."""
    weights_sha256: str = ""
    """Hash of the file of averaged weights, which act; empty in records of older versions."""
    command: str = ""
    """Command line that made it."""
    commit: str = ""
    """Git commit of flowpolicy, '-dirty' where files were changed; empty outside a repository."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Library versions."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the policy was made: its experiment (seed, data, every option), hash of the data, seconds, parameters."""
    simulation: str = ""
    """How the simulator was stepped, where there is a choice: the control step of robosuite is 'compiled', or its own
    and why. Empty elsewhere, and in records of older versions."""
    noise_scale: float = 1.0
    """Factor of the policy's initial noise, see :class:`flowpolicy.policy.Policy`."""
    mismatch: tuple[str, ...] = ()
    """In what the pictures differed from those of training, in lines; allowed by --allow-render-mismatch."""
    engine: str = ""
    """What computed the decisions; empty for the policy itself, in PyTorch."""
    instruction: str = ""
    """What the policy was told to do; empty for one that takes no instruction."""
    success_defined: bool = True
    """False where the environment defines no success: the return counts."""
    normalized: Interval | None = None
    """Normalised score, where the environment defines one."""

    def __repr__(self) -> str:
        name, found = ("success", self.success) if self.success else ("return", self.return_)
        what = f"{name} {found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]"
        return f"<Evaluation of {self.run or 'a policy'}: {what}, {len(self.episodes)} episodes>"

    def __str__(self) -> str:
        from rich.console import Console

        from flowpolicy.evaluate.tables import evaluation_table  # which imports this file

        console = Console(width=100, file=io.StringIO())
        with console.capture() as text:
            console.print(evaluation_table(self))
        return text.get().rstrip()

    @property
    def success(self) -> Interval | None:
        """Success rate with Wilson's interval; None where success is not defined."""
        if not self.success_defined:
            return None
        return wilson(sum(episode.success for episode in self.episodes), len(self.episodes))

    @property
    def return_(self) -> Interval:
        """Mean return with its bootstrap interval."""
        return bootstrap_mean([episode.return_ for episode in self.episodes])

    @property
    def nfe(self) -> int:
        """Network evaluations per chunk, measured.

        Raises:
            EvaluationError: the count differs between episodes.

        """
        counts = {episode.evaluations / episode.chunks for episode in self.episodes}
        if len(counts) != 1 or not (count := counts.pop()).is_integer():
            raise EvaluationError("network evaluations per chunk differ between episodes", expected="one whole number")
        return int(count)


def make_evaluation(
    plan: EvaluationPlan,
    episodes: Sequence[Episode],
    *,
    run: str = "",
    step: int = 0,
    checkpoint_sha256: str = "",
    weights_sha256: str = "",
    command: str = "",
    training: dict[str, Any] | None = None,
    simulation: str = "",
    noise_scale: float = 1.0,
    mismatch: tuple[str, ...] = (),
    engine: str = "",
    instruction: str = "",
    success_defined: bool = True,
    normalized_score: Callable[[float], float] | None = None,
) -> Evaluation:
    """Gather the outcomes of a rollout.

    Args:
        plan: what was played.
        episodes: what :func:`flowpolicy.evaluate.rollout.rollout` returned.
        run: run folder.
        step: gradient step of the checkpoint.
        checkpoint_sha256: hash of its manifest.
        weights_sha256: hash of its averaged weights.
        command: command line.
        training: how the policy came about.
        simulation: how the simulator was stepped.
        noise_scale: factor of the policy's initial noise.
        mismatch: in what pictures differed from those of training.
        engine: what computed the decisions, if not the policy itself.
        instruction: what the policy was told to do.
        success_defined: whether the environment defines success.
        normalized_score: return of an episode -> normalised score.

    """
    return Evaluation(
        plan=plan,
        episodes=tuple(episodes),
        latency=_latency(episodes),
        run=run,
        step=step,
        checkpoint_sha256=checkpoint_sha256,
        weights_sha256=weights_sha256,
        command=command,
        commit=git_commit(),
        versions=library_versions(),
        training=training or {},
        simulation=simulation,
        noise_scale=noise_scale,
        mismatch=mismatch,
        engine=engine,
        instruction=instruction,
        success_defined=success_defined,
        normalized=bootstrap_mean([normalized_score(e.return_) for e in episodes]) if normalized_score else None,
    )


def _latency(episodes: Sequence[Episode]) -> Latency | None:
    # The first decision pays for allocation and compilation. It is the first one of the first
    # episode, because slots are filled in plan order.
    seconds = [time for episode in episodes for time in episode.decision_seconds][1:]
    if not seconds:
        return None
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e6
    return Latency(float(p50), float(p99))


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation as JSON, atomically; no value in it is NaN."""
    write_json(path, to_json(evaluation))


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """JSON values of an evaluation. The summary is derived from ``episodes``."""
    mean_low_high = {"mean", "low", "high"}
    return {
        "schema": SCHEMA,
        "success": evaluation.success and dataclasses.asdict(evaluation.success),
        "return": {k: v for k, v in dataclasses.asdict(evaluation.return_).items() if k in mean_low_high},
        "normalized_score": evaluation.normalized and dataclasses.asdict(evaluation.normalized),
        "nfe": evaluation.nfe,
        "latency": evaluation.latency and dataclasses.asdict(evaluation.latency),
        "run": evaluation.run,
        "step": evaluation.step,
        "checkpoint_sha256": evaluation.checkpoint_sha256,
        "weights_sha256": evaluation.weights_sha256,
        "command": evaluation.command,
        "commit": evaluation.commit,
        "versions": evaluation.versions,
        "training": evaluation.training,
        **({"simulation": evaluation.simulation} if evaluation.simulation else {}),
        "noise_scale": evaluation.noise_scale,
        **({"mismatch": list(evaluation.mismatch)} if evaluation.mismatch else {}),
        **({"engine": evaluation.engine} if evaluation.engine else {}),
        **({"instruction": evaluation.instruction} if evaluation.instruction else {}),
        "plan_digest": evaluation.plan.digest,
        "plan": evaluation.plan.to_json(),
        "episodes": [_episode_json(episode, evaluation.success_defined) for episode in evaluation.episodes],
    }


def _episode_json(episode: Episode, success_defined: bool) -> dict[str, Any]:
    return {
        "index": episode.index,
        "policy_seed": episode.policy_seed,
        "success": episode.success if success_defined else None,
        "success_step": episode.success_step,
        "return": episode.return_,
        "length": episode.length,
        "chunks": episode.chunks,
        "evaluations": episode.evaluations,
        "policy_seconds": episode.policy_seconds,
    }


def load_evaluation(path: Path) -> Evaluation:
    """Read an evaluation written by :func:`save_evaluation`.

    Raises:
        EvaluationError: another schema, a missing key, or a plan that was altered.

    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise EvaluationError(
            f"{path} is not an evaluation of schema {SCHEMA}", fix="run flowpolicy eval again with this version"
        )
    try:
        return _decode(value, path)
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path} lacks or misspells {error}", fix="run flowpolicy eval again; do not edit the file"
        ) from error


def _decode(value: dict[str, Any], path: Path) -> Evaluation:
    plan = plan_from(value["plan"], f"{path}: plan")
    episodes = tuple(
        Episode(
            index=item["index"],
            policy_seed=item["policy_seed"],
            success_step=item["success_step"],
            return_=item["return"],
            length=item["length"],
            chunks=item["chunks"],
            evaluations=item["evaluations"],
            decision_seconds=(item["policy_seconds"],),
        )
        for item in value["episodes"]
    )
    played = tuple((episode.index, episode.policy_seed) for episode in episodes)
    if plan.digest != value["plan_digest"] or played != tuple(zip(plan.indices, plan.policy_seeds, strict=True)):
        raise EvaluationError(f"{path}: the plan was altered", fix="run flowpolicy eval again; do not edit the file")
    return Evaluation(
        plan=plan,
        episodes=episodes,
        latency=value["latency"] and Latency(**value["latency"]),
        # Older records say that nobody succeeded where success is not defined, and lack the rest.
        success_defined=value["success"] is not None and defines_success(plan.env_id),
        noise_scale=value.get("noise_scale", 1.0),
        mismatch=tuple(value.get("mismatch", ())),
        **{
            key: value.get(key, "")
            for key in ("checkpoint_sha256", "weights_sha256", "simulation", "engine", "instruction")
        },
        normalized=value["normalized_score"] and Interval(**value["normalized_score"]),
        **{key: value[key] for key in ("run", "step", "command", "commit", "versions", "training")},
    )


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations episode against episode.

    Raises:
        EvaluationError: they were made on different plans.

    """
    if a.plan.digest != b.plan.digest:
        raise EvaluationError(
            f"{a.run or 'A'} and {b.run or 'B'} were evaluated on different plans "
            f"({a.plan.digest[:8]}: {len(a.episodes)} episodes, {b.plan.digest[:8]}: {len(b.episodes)} episodes)",
            expected="one plan for both, or pairs do not exist",
            fix="run flowpolicy eval on both with the same --episodes and --seed, or one --plan FILE",
        )
    return compare_paired(
        [episode.success for episode in a.episodes],
        [episode.success for episode in b.episodes],
        [episode.return_ for episode in a.episodes],
        [episode.return_ for episode in b.episodes],
    )


def git_commit() -> str:
    """Commit of the running flowpolicy sources; empty where they are not under version control."""
    folder = Path(__file__).parents[1]
    # A wheel installed in a virtual environment inside some other repository is not part of it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") == "":
        return ""
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
