"""The only training loop. A run killed at any moment and resumed equals the uninterrupted run."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from flowpolicy.agents.base.agent import TrainedAgent
from flowpolicy.agents.base.captured_update import CapturedUpdate
from flowpolicy.core import checkpoint, ranks
from flowpolicy.core.config import encode
from flowpolicy.core.devices import Precision, find_device, multiplying, settle
from flowpolicy.core.errors import ConfigError, DataWarning, TrainingError
from flowpolicy.core.files import digest, read_json, write_json, write_tensors, write_text
from flowpolicy.core.protocols import Agent, BatchSource, Metrics, VecEnv
from flowpolicy.core.run_upload import Published
from flowpolicy.core.seed import derive, torch_generator
from flowpolicy.core.spec import Spec, load_contract, save_contract
from flowpolicy.train.compiling import decided, operators
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.kinds import KINDS
from flowpolicy.train.log import Logger, make_loggers
from flowpolicy.train.start import Start, find_start, read_weights

Report = Callable[[int, dict[str, float]], None]
"""Called with the finished updates and the newest metrics; drives the progress bar."""
Keep = Callable[[Metrics, float, float], None]
"""Told of every update: its metrics, and the seconds that its batch and it took."""


@dataclasses.dataclass
class UpdateClock:
    """Milliseconds spent on batches, updates and logging since the last row.

    A GPU works on when a call has returned: what is still to be done when a row is due is waited for there, and counts
    as update. So the sum is the time that passed, and ``data`` is what the processor spent on it.
    """

    data: float = 0.0
    update: float = 0.0
    log: float = 0.0
    steps: int = 0

    def row(self) -> dict[str, float]:
        """Mean milliseconds per update; starts anew."""
        steps = max(1, self.steps)
        row = {f"{name}_ms": 1e3 * getattr(self, name) / steps for name in ("data", "update", "log")}
        self.data = self.update = self.log = 0.0
        self.steps = 0
        return row


class Trainer:
    """An experiment in progress: agent, batches, random streams and loggers.

    Args:
        experiment: what to train.
        run: run folder.
        env: spec of the environment that the policy is meant for; that of ``experiment.env`` unless given.
        resume: continue from the newest checkpoint of ``run``.
        slot: one environment to step in, where ``experiment.online`` asks for steps.
        beside: another training on the same data with the same scaling, whose dataset and batches serve both.
        published: told of every checkpoint folder that was published.

    """

    def __init__(
        self,
        experiment: Experiment,
        run: Path,
        env: Spec | None = None,
        *,
        resume: bool = False,
        slot: VecEnv | None = None,
        beside: Trainer | None = None,
        published: Published = lambda folder: None,
    ) -> None:
        find_device(experiment.device)
        torch.set_num_threads(experiment.threads)
        self.run, self.published, self.ranks = run, published, ranks.current()
        if self.ranks:
            _require_equal_parts(experiment, self.ranks.count)
        newest = checkpoint.resolve(run) if resume else None
        if not resume and run.exists() and any(run.glob(f"{checkpoint.FOLDER}/step_*")):
            raise ConfigError(
                f"{run} already holds a run", fix=f"flowpolicy resume {run}, or choose another --out folder"
            )
        stored = load_contract(newest / "contract.json") if newest else None
        if beside is not None:
            start = beside.start.again(decided(experiment), stored)
        else:
            with self.ranks.leader_first() if self.ranks else contextlib.nullcontext():
                start = find_start(decided(experiment), run, env, stored, slot)
        self.start: Start = start
        self.experiment, self.contract = start.experiment, start.contract
        self.agent = start.agent()
        if newest:
            self.agent.load_state_dict(read_weights(newest))
        else:
            start.hand_over(self.agent)
        self.source: BatchSource = start.source(self.agent) if beside is None else beside.source.beside()
        self.precision = _usable_precision(self.experiment, self.agent)
        # The position of the batch stream is also the sampler's cursor: batches are drawn with replacement.
        self.streams = {
            name: torch_generator(experiment.seed, name, device=experiment.device) for name in ("batches", "noise")
        }
        if self.experiment.capture and torch.device(self.experiment.device).type != "cuda":
            raise ConfigError(f"--capture on {self.experiment.device}", expected="a CUDA device", fix="--device cuda")
        self._captured: CapturedUpdate | None = None  # made when the first update is due, with all state in its place
        self.step = 0
        self.seconds = 0.0
        self._shares = [[0, self.ranks.count if self.ranks else 1]]
        """From which update on how many processes have shared the run."""
        self._unread: list[Metrics] = []
        if newest:
            self._restore(newest)
        if self.ranks:
            _require_divisible(self.agent, start)
            same = {"the training file": self.contract.dataset_sha256, "PyTorch": torch.__version__}
            self.ranks.require_equal({**self._hashes(), **same}, "before the training")
            self.ranks.proven = False

    def train(self, report: Report = lambda step, row: None) -> Path:
        """Train to the end and return the last checkpoint."""
        with self.keeping(report) as keep:
            while not self.finished:
                keep(*self._update())
                if self.ranks and not self.finished and self.ranks.stopping(self.step):
                    self.save()
                    self.ranks.wait()
                    raise KeyboardInterrupt
        if self.ranks:
            self.ranks.wait()  # for the last checkpoint
        return checkpoint.resolve(self.run)

    @contextlib.contextmanager
    def keeping(self, report: Report = lambda step, row: None) -> Iterator[Keep]:
        """Yields what is told of every update: writes the rows of the loggers and the checkpoints that are due."""
        experiment, clock, due = self.experiment, UpdateClock(), False
        self.run.mkdir(parents=True, exist_ok=True)
        loggers = []
        if ranks.leads():
            loggers = make_loggers(
                self.run, tensorboard=experiment.tensorboard, wandb=experiment.wandb, resume_at=self.step
            )

        def keep(metrics: Metrics, drawing: float, updating: float) -> None:
            nonlocal due
            self.step += 1
            self._unread.append(metrics)
            clock.data += drawing
            clock.update += updating
            clock.steps += 1
            self.seconds += drawing + updating
            last = self.finished
            if last or self.step % experiment.log_every == 0:
                report(self.step, self._log(metrics, clock, loggers))
            due |= self.step % experiment.checkpoint_every == 0
            if last or (due and self.source.at_boundary):
                self._require_finite(metrics)
                self.save()
                due = False

        try:
            yield keep
        finally:
            for logger in loggers:
                logger.close()

    @property
    def finished(self) -> bool:
        """Whether all updates are done, or the agent has stopped early."""
        return self.step >= self.experiment.steps or self.agent.stopped

    def _update(self) -> tuple[Metrics, float, float]:
        """One update: its metrics, and the seconds that batch and update took."""
        start = time.perf_counter()
        if self.experiment.capture:
            with operators(self.experiment.compile), multiplying(self.precision, self.experiment.device):
                if self._captured is None:
                    streams = list(self.streams.values())
                    self._captured = CapturedUpdate([self.agent], self.source, self._whole_update, streams)
                metrics = self._captured()[0]
            return metrics, 0.0, time.perf_counter() - start
        batch = self.source.draw(self.streams["batches"])
        drawn = time.perf_counter()
        with operators(self.experiment.compile), multiplying(self.precision, self.experiment.device):
            metrics = self.agent.update(batch, self.streams["noise"])
        return metrics, drawn - start, time.perf_counter() - drawn

    def _whole_update(self) -> list[Metrics]:
        return [self.agent.update(self.source.draw(self.streams["batches"]), self.streams["noise"])]

    def _log(self, metrics: Metrics, clock: UpdateClock, loggers: list[Logger]) -> dict[str, float]:
        start = time.perf_counter()
        settle(self.experiment.device)
        waited = time.perf_counter() - start
        clock.update += waited
        self.seconds += waited
        start += waited
        values = {name: float(value) for name, value in metrics.items()}
        row = (self.ranks.averaged(values) if self.ranks else values) | clock.row()
        self._require_finite_losses()
        for logger in loggers:
            logger.log(self.step, row)
        clock.log += time.perf_counter() - start
        return row

    def _require_finite_losses(self) -> None:
        """Check the loss of every update since the last check, so that the error names the one that went wrong."""
        unread, self._unread = self._unread, []
        finite = torch.stack([metrics["loss"] for metrics in unread]).isfinite().tolist() if unread else []
        if False in finite:
            first = finite.index(False)
            self._refuse(unread[first], self.step - len(finite) + first + 1)

    def _require_finite(self, metrics: Metrics) -> None:
        """Check all that a checkpoint would make permanent: the losses, the newest metrics and the weights."""
        self._require_finite_losses()
        weights = self.agent.state_dict()["weights"]
        self._refuse(metrics | weights, self.step)

    def _refuse(self, values: Metrics, update: int) -> None:
        """Raise TrainingError, naming the update, if any of its values is not finite."""
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        if bad:
            others = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
            raise TrainingError(
                f"{', '.join(bad[:4])}{others} of update {update} is not finite (batch {update} of the seed "
                f"{self.experiment.seed}); no checkpoint was written after it",
                fix="lower the learning rate (--agent.optimizer.lr; --agent.critic-optimizer.lr for agents with a "
                "critic), or check the file with flowpolicy doctor",
            )

    def save(self) -> Path:
        """Write a checkpoint and make it the newest; of processes that train together, rank 0 does."""
        if self.ranks:
            self.ranks.require_equal(self._hashes(), f"after update {self.step}")
            if not self.ranks.leads:
                return self.run / checkpoint.FOLDER

        def write(folder: Path) -> None:
            for name, tensors in self.agent.state_dict().items():
                write_tensors(folder / f"{name}.safetensors", tensors)
            write_json(folder / "state.json", self._state())
            write_json(folder / "config.json", self._config())
            save_contract(folder / "contract.json", self.contract)
            write_text(folder / "card.md", self._card())

        made = checkpoint.publish(self.run, self.step, write, self.experiment.keep_checkpoints)
        self.published(made)
        return made

    def _restore(self, folder: Path) -> None:
        state = read_json(folder / "state.json")
        for name, stream in self.streams.items():
            stored = torch.frombuffer(bytearray(b64decode(state["generators"][name])), dtype=torch.uint8)
            if len(stored) == len(stream.get_state()):
                stream.set_state(stored)
            else:
                seed = derive(self.experiment.seed, name, "from", state["step"])
                stream.manual_seed(seed)
                warnings.warn(
                    f"{folder} was written on another kind of device than {self.experiment.device}: the stream of its "
                    f"{name} begins anew, so that this is not what the run would have been",
                    DataWarning,
                    stacklevel=2,
                )
        self.step, self.seconds = state["step"], state["train_seconds"]
        now, self._shares = self._shares[0][1], state.get("shares", [[0, 1]])
        if (before := self._shares[-1][1]) != now:
            self._shares = [*self._shares, [self.step, now]]
            warnings.warn(
                f"{self.run} was trained by {before} process{'es' if before > 1 else ''} up to update {self.step} and "
                f"goes on with {now}: the same batches and draws, summed in another order, so that it equals the "
                "uninterrupted run to round-off and not bit for bit; the checkpoints say so",
                DataWarning,
                stacklevel=2,
            )
        # Runs from before every source had a state hold that of environment steps alone.
        self.source.restore(state.get("source", state.get("online", {})))

    def _state(self) -> dict[str, Any]:
        streams = {name: b64encode(stream.get_state().numpy().tobytes()) for name, stream in self.streams.items()}
        return {
            "schema": 1,
            "step": self.step,
            "train_seconds": self.seconds,
            "generators": {name: state.decode() for name, state in streams.items()},
            "source": self.source.state(),
            **({} if self._shares == [[0, 1]] else {"shares": self._shares}),
        }

    def _hashes(self) -> dict[str, str]:
        """What must be the same in all processes that train together, by its name in errors."""
        return {f"{name}.safetensors": digest(tensors) for name, tensors in self.agent.state_dict().items()} | {
            "state.json": str(self._state() | {"train_seconds": 0})
        }

    def _config(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "experiment": encode(self.experiment, KINDS),
            "policy": encode(self.agent.policy_config, KINDS),
        }

    def _card(self) -> str:
        contract = self.contract
        start = [
            f"- post-trained from {contract.base}, SHA-256 {contract.base_sha256}",
            f"- on {contract.groups_source} groups: {contract.groups}, SHA-256 {contract.groups_sha256}"
            + (" (labelled in the simulator: no offline result)" if contract.groups_source == "simulator" else ""),
        ]
        return "\n".join(
            [
                f"# {type(self.experiment.agent).__name__} for {contract.spec.env_id}",
                "",
                f"- updates: {self.step} of {self.experiment.steps}, seed {self.experiment.seed}",
                f"- data: {contract.dataset_id}, SHA-256 {contract.dataset_sha256}",
                *(start if contract.base else []),
                *([] if self._shares == [[0, 1]] else [f"- rows of each update shared by: {_shared_by(self._shares)}"]),
                f"- acts in {contract.nfe} network evaluation(s) per chunk of {contract.chunk} actions, "
                f"{contract.execute} of which are executed",
                f"- action: {contract.spec.action.convention}, {contract.spec.action.units}, "
                f"{contract.spec.action.rate_hz:g} Hz",
                "",
                "Load with `flowpolicy.policy.Policy.load(folder)`; `contract.json` says what it may be used for.",
                "",
            ]
        )


def _shared_by(shares: list[list[int]]) -> str:
    parts = [f"{count} process{'es' if count > 1 else ''} from update {after + 1} on" for after, count in shares]
    return ", ".join(parts)


def _require_equal_parts(experiment: Experiment, count: int) -> None:
    """Refuse what several processes cannot share, before a file is read."""
    rows = experiment.batch_size
    if rows % count:
        fitting = [number for number in range(1, count) if rows % number == 0]
        raise ConfigError(
            f"--batch-size {rows} cannot be shared equally by {count} processes",
            expected="a batch size that the number of processes divides",
            fix=f"--batch-size {rows - rows % count or count} or {rows - rows % count + count}, or "
            f"torchrun --nproc-per-node {fitting[-1]}",
        )
    if experiment.capture or experiment.compile == "on":
        flag = "--capture" if experiment.capture else "--compile on"
        raise ConfigError(
            f"{flag} with {count} processes: messages between them in a graph are not tried",
            expected="updates of single operators",
            fix="leave it out; a run that was begun so goes on in one process",
        )


def _require_divisible(agent: Agent, start: Start) -> None:
    reason = start.whole
    if not reason and (not isinstance(agent, TrainedAgent) or type(agent).update is not TrainedAgent.update):
        reason = f"{type(agent).__name__} takes its updates in a way of its own"
    if reason := reason or getattr(agent, "indivisible", ""):
        raise ConfigError(
            f"several processes cannot share the updates of this run: {reason}",
            fix="train it in one process, without torchrun",
        )


def _usable_precision(experiment: Experiment, agent: Agent) -> Precision:
    """What of the precision that is asked for has a meaning here; says where it has none."""
    asked, place = experiment.precision, torch.device(experiment.device)
    exact = str(getattr(agent, "exact", ""))
    why = ""
    if asked == "tf32" and place.type != "cuda":
        why = f"{place.type} has no such numbers, and computes in float32"
    elif asked == "tf32" and torch.cuda.get_device_capability(place)[0] < 8:
        why = f"{torch.cuda.get_device_name(place)} has no such numbers, and computes in float32"
    elif asked == "tf32" and exact:
        # A derivative's products are those of its loss: they cannot be told from the rest.
        why = f"the losses of {type(experiment.agent).__name__} are computed in float32 as a whole: {exact}"
    elif asked == "bf16" and exact:
        warnings.warn(f"--precision {asked}: what cannot be in it stays float32: {exact}", stacklevel=3)
    if why:
        warnings.warn(f"--precision {asked} changes nothing here: {why}", stacklevel=3)
        return "fp32"
    return asked
