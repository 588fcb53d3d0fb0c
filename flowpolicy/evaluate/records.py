"""Which evaluation belongs to which checkpoint: names of records and videos, and the records that speak of a run.

::

    RUN/eval/PLAN-step300-CHECKPOINT-nfe1.json              one checkpoint, played in one way on one plan
    RUN/videos/episode_0007-PLAN-step300-..._success.mp4    an episode of that evaluation
    RUN/card/card.png                                       of the newest checkpoint that a card was made of
    RUN/card/PLAN-step100-CHECKPOINT/card.png               of another checkpoint or plan
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import EvaluationError, FlowPolicyError
from flowpolicy.core.files import read_json, write_json
from flowpolicy.core.run_places import local_run
from flowpolicy.core.spec import Contract
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.report import Evaluation, load_evaluation


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells a checkpoint from every other."""

    step: int
    """Gradient step."""
    sha256: str
    """Hash of its manifest, which holds the hash of every file."""

    def made(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation is of this checkpoint; a record without a hash, as older ones are, goes by the step."""
        return evaluation.step == self.step and evaluation.checkpoint_sha256 in ("", self.sha256)


def identity(folder: Path) -> Identity:
    """The identity of a checkpoint folder."""
    return Identity(read_json(folder / "state.json")["step"], checkpoint.fingerprint(folder))


def acted(folder: Path, contract: Contract, command: str, parameters: int | None = None) -> dict[str, Any]:
    """What a record says of the checkpoint that acted and of the command, as ``make_evaluation`` takes it.

    Args:
        folder: of the checkpoint.
        contract: of the policy.
        command: command line that asked.
        parameters: of the policy's networks, if they were counted.

    """
    state = read_json(folder / "state.json")
    origin = ("dataset_id", "dataset_filter", "base", "base_sha256", "groups", "groups_sha256", "groups_source")
    return {
        "step": state["step"],
        "checkpoint_sha256": identity(folder).sha256,
        "weights_sha256": read_json(folder / checkpoint.MANIFEST)["ema.safetensors"],
        "command": command,
        "training": {
            "experiment": read_json(folder / "config.json")["experiment"],
            "dataset_sha256": contract.dataset_sha256,
            **{name: value for name in origin if (value := getattr(contract, name))},
            "seconds": state["train_seconds"],
            **({} if parameters is None else {"parameters": parameters}),
        },
    }


def record_name(evaluation: Evaluation) -> str:
    """Name of a record in RUN/eval, without suffix: another checkpoint or another way of acting has another name."""
    parts = [evaluation.plan.digest[:12], f"step{evaluation.step}", evaluation.checkpoint_sha256[:8]]
    parts += [f"nfe{evaluation.nfe}", *([f"noise{evaluation.noise_scale}"] if evaluation.noise_scale != 1 else [])]
    if evaluation.mismatch:
        parts.append(f"drawn{digest_of_lines(evaluation.mismatch)}")
    if evaluation.instruction:
        parts.append(f"told{digest_of_lines((evaluation.instruction,))}")
    parts += [evaluation.engine]
    return "-".join(part for part in parts if part)


def digest_of_lines(lines: tuple[str, ...]) -> str:
    """Eight digits that tell one set of lines from another."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def as_trained(run: Path, evaluation: Evaluation) -> Evaluation | None:
    """The record of the same checkpoint, plan and way of acting on pictures as in training, where there is one."""
    path = record_path(run, dataclasses.replace(evaluation, mismatch=()))
    return load_evaluation(path) if path.is_file() else None


def record_path(run: Path, evaluation: Evaluation) -> Path:
    """Where the record of an evaluation stands in a run folder."""
    return run / "eval" / f"{record_name(evaluation)}.json"


def card_name(step: int, checkpoint_sha256: str, plan: EvaluationPlan) -> str:
    """Name of the card of one checkpoint on one plan."""
    return f"{plan.digest[:12]}-step{step}-{checkpoint_sha256[:8]}"


def make_way(folder: Path, name: str) -> None:
    """Move an earlier card in RUN/card to a folder of its own there, unless it is the card ``name``."""
    mark = folder / "card.json"
    parts = [path for pattern in ("card.*", "nfe_*.json", "delay.*") for path in folder.glob(pattern)]
    earlier = read_json(mark)["card"] if mark.exists() else "earlier"
    if parts and earlier != name:
        (folder / earlier).mkdir(exist_ok=True)
        for path in parts:
            path.replace(folder / earlier / path.name)
    write_json(mark, {"card": name})


def repeats(
    path: Path,
    acting: Identity,
    plan: EvaluationPlan,
    nfe: int,
    noise_scale: float,
    mismatch: tuple[str, ...] = (),
    engine: str = "",
    instruction: str = "",
) -> bool:
    """Whether a file holds an earlier evaluation of the same checkpoint, on the same plan, in the same way."""
    if not path.is_file():
        return False
    try:
        earlier = load_evaluation(path)
    except FlowPolicyError:  # another kind of file
        return False
    way = (earlier.nfe, earlier.noise_scale, earlier.mismatch, earlier.engine, earlier.instruction)
    asked = (nfe, noise_scale, mismatch, engine, instruction)
    return (earlier.checkpoint_sha256, earlier.plan, *way) == (acting.sha256, plan, *asked)


def current_records(run: Path) -> list[Evaluation]:
    """The evaluations of the checkpoint that ``run`` means, newest first; a file is the evaluation in it.

    Raises:
        EvaluationError: there are none, or only such of other checkpoints than the newest.

    """
    if run.is_file():
        return [load_evaluation(run)]
    meant = _meant(local_run(run))
    found = stored_records(run if meant is None else checkpoint.run_of(meant))
    if not found:
        raise EvaluationError(f"{run} has no evaluations", fix=f"flowpolicy eval {run}")
    if meant is None:  # evaluations alone, without checkpoints: those of the last step
        last = max(evaluation.step for evaluation in found.values())
        return [evaluation for evaluation in found.values() if evaluation.step == last]
    wanted = identity(meant)
    current = [evaluation for evaluation in found.values() if wanted.made(evaluation)]
    if not current:
        steps = sorted({evaluation.step for evaluation in found.values()})
        again = f" (that of step {wanted.step} is of another training)" if wanted.step in steps else ""
        raise EvaluationError(
            f"the evaluations of {run} are of step {', '.join(map(str, steps))}{again}, "
            f"and its checkpoint {meant.name} has none",
            expected=f"an evaluation of step {wanted.step}",
            fix=f"flowpolicy eval {run}; or name an evaluation file instead of the run, such as {next(iter(found))}",
        )
    return current


def _meant(run: Path) -> Path | None:
    """The checkpoint folder that a path means; None where there is none."""
    if (run / checkpoint.MANIFEST).exists():
        return run
    name = checkpoint.newest(run)
    return run / checkpoint.FOLDER / name if name else None


def stored_records(run: Path) -> dict[Path, Evaluation]:
    """Path -> evaluation of everything in RUN/eval, newest file first."""
    files = sorted((run / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return {path: load_evaluation(path) for path in files}
