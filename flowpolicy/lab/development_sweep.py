"""A search for the options of a preset, by Ray Tune, on states of development: never on those of evaluations.

::

    OUT/sweep.json                  what is searched and how
    OUT/LABEL                       a trial: a run folder like any other, and LABEL.log beside it
    OUT/records/LABEL-UPDATES.json  what it did on the development plan at each rung

A trial is what its folder and its records say. The same command again takes them as they are and goes on with the rest,
so that nothing of Ray's own files has to outlive a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError, FlowPolicyError, TrainingError
from flowpolicy.core.files import held_alone, read_object, write_json
from flowpolicy.evaluate.plan import EPISODES_PER_SEED, make_plan
from flowpolicy.evaluate.report import Evaluation, load_evaluation
from flowpolicy.evaluate.sheets import Sheet
from flowpolicy.evaluate.tables import number, percent
from flowpolicy.lab.ray_cluster import ray_cluster
from flowpolicy.lab.tied_process import start_tied

DEVELOPMENT = 7
"""Seed of the plans that things are chosen on. Suites and evaluations use 0."""
SPACE = "sweep.json"
_AXIS = re.compile(r"(?:--)?([A-Za-z][\w.-]*)=(.+)")
_SPAN = re.compile(r"([^.:,]\S*?)\.\.([^:,]+?)(:log)?")


@dataclasses.dataclass(frozen=True)
class SweepAxis:
    """An option of ``flowpolicy train`` and what it may be."""

    name: str
    """Without the leading ``--``."""
    values: tuple[str, ...] = ()
    low: float = 0.0
    """Of a span, where no values are listed."""
    high: float = 0.0
    log: bool = False
    """Even in the logarithm."""
    whole: bool = False
    """Whole numbers alone."""

    @property
    def ends(self) -> tuple[str, ...]:
        """All values, or the two ends of a span."""
        return self.values or (self.text(self.low), self.text(self.high))

    def text(self, value: Any) -> str:
        """A value as it is typed."""
        return value if isinstance(value, str) else f"{value:.0f}" if self.whole else f"{value:.6g}"


def parse_axis(word: str) -> SweepAxis:
    """An axis as it is typed: ``agent.alpha=0.3,1,3``, or a span as ``agent.alpha=0.1..10:log``.

    Raises:
        ConfigError: it is neither.

    """
    match = _AXIS.fullmatch(word.strip())
    expected = "NAME=VALUE,VALUE,... or NAME=LOW..HIGH, NAME=LOW..HIGH:log, such as agent.alpha=0.3,1,3"
    if not match:
        raise ConfigError(f"--over {word}", expected=expected)
    name, told = match[1].replace("_", "-"), match[2].strip()
    if span := _SPAN.fullmatch(told):
        try:
            low, high = float(span[1]), float(span[2])
        except ValueError as error:
            raise ConfigError(f"--over {word}", expected=expected) from error
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (span[3] and low <= 0):
            raise ConfigError(f"--over {word}", expected="a smaller and a larger number; above 0 for :log")
        whole = all(re.fullmatch(r"-?\d+", text) for text in (span[1], span[2]))
        return SweepAxis(name, low=low, high=high, log=bool(span[3]), whole=whole)
    values = tuple(text.strip() for text in told.split(",") if text.strip())
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"--over {word}", expected="at least one value, every value once")
    return SweepAxis(name, values)


@dataclasses.dataclass(frozen=True)
class DevelopmentSweep:
    """What is searched, and how."""

    preset: tuple[str, ...]
    """Words after ``flowpolicy train``: the preset, and flags that all trials have in common."""
    axes: tuple[SweepAxis, ...]
    search: Literal["grid", "random", "optuna"]
    trials: int
    """How many; a grid has as many as combinations."""
    steps: int
    """Updates of a trial that is not stopped before."""
    env_id: str
    episodes: int
    """Of an evaluation at a rung."""
    rungs: int = 3
    """How often a trial is judged; at each but the last the best of ``keep`` go on."""
    keep: int = 3
    """One of so many goes on at a rung."""
    plan_seed: int = DEVELOPMENT
    seed: int = 0
    """Of the search."""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names:
            raise ConfigError("nothing to search", fix="--over agent.alpha=0.3,1,3")
        if len(set(names)) < len(names):
            raise ConfigError(f"--over {' '.join(names)} names an option twice", expected="every option once")
        if self.search == "grid" and any(not axis.values for axis in self.axes):
            raise ConfigError("--search grid over a span", expected="values", fix="--search random, or list values")
        if self.plan_seed == 0:
            raise ConfigError(
                "--plan-seed 0 is that of evaluations: what is chosen on their states does well on them by choice",
                fix=f"leave it out, for {DEVELOPMENT}, or name another one",
            )
        plan = make_plan(self.env_id, self.episodes, self.plan_seed)
        assert not set(plan.indices) & set(range(EPISODES_PER_SEED)), "states of development among those of evaluation"
        if self.steps < self.keep ** (self.rungs - 1):
            raise ConfigError(f"--steps {self.steps} for {self.rungs} rungs", fix="more updates, or fewer --rungs")

    @property
    def milestones(self) -> list[int]:
        """Updates at which a trial is judged; the last is its end."""
        first = self.first_rung
        return [*(first * self.keep**k for k in range(self.rungs - 1) if first * self.keep**k < self.steps), self.steps]

    @property
    def first_rung(self) -> int:
        """Updates between two checkpoints, and to the first rung."""
        return -(-self.steps // self.keep ** (self.rungs - 1))

    @property
    def combinations(self) -> list[dict[str, str]]:
        """Every combination of values, or of the ends of spans."""
        every = itertools.product(*(axis.ends for axis in self.axes))
        return [{axis.name: text for axis, text in zip(self.axes, each, strict=True)} for each in every]

    def label(self, values: dict[str, str]) -> str:
        """Name of a trial."""
        short = [axis.name.rpartition(".")[2] for axis in self.axes]
        names = [axis.name if short.count(s) > 1 else s for axis, s in zip(self.axes, short, strict=True)]
        parts = (f"{name}-{values[axis.name]}" for name, axis in zip(names, self.axes, strict=True))
        return re.sub(r"[^\w.+-]", "_", "-".join(parts))

    def words(self, values: dict[str, str]) -> tuple[str, ...]:
        """Words after ``flowpolicy`` that train a trial, but for its folder."""
        chosen = (word for name, text in values.items() for word in (f"--{name}", text))
        every = ("--steps", str(self.steps), "--checkpoint-every", str(self.first_rung), "--keep-checkpoints", "0")
        return ("train", *self.preset, *chosen, *every)


def run_sweep(sweep: DevelopmentSweep, out: Path, *, cpus: float = 1.0, gpus: float = 0.0) -> None:
    """Train and judge all trials, on the Ray cluster that is near.

    Args:
        sweep: what is searched.
        out: folder of trials and records; every node must see it.
        cpus: of a trial.
        gpus: of a trial.

    Raises:
        ConfigError: another sweep is there.
        TrainingError: no trial came to its end.

    """
    stated = dataclasses.asdict(sweep) | {"preset": list(sweep.preset)}
    stated["axes"] = [dataclasses.asdict(axis) | {"values": list(axis.values)} for axis in sweep.axes]
    with held_alone(out, "flowpolicy sweep"):
        if (out / SPACE).exists():
            if (there := read_object(out / SPACE)) != stated:
                differing = [name for name in stated if there.get(name) != stated[name]]
                raise ConfigError(
                    f"{out} holds another sweep: {', '.join(differing)} differ", fix="choose another --out"
                )
        else:
            write_json(out / SPACE, stated)
        with ray_cluster("") as ray:
            _tune(ray, sweep, out.absolute(), cpus, gpus)


def _tune(ray: Any, sweep: DevelopmentSweep, out: Path, cpus: float, gpus: float) -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    total = len(sweep.combinations) if sweep.search == "grid" else sweep.trials
    algorithm: Any = None
    if sweep.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        algorithm = OptunaSearch(seed=sweep.seed)
    elif sweep.search == "random":
        from ray.tune.search import BasicVariantGenerator

        algorithm = BasicVariantGenerator(random_state=sweep.seed)
    scheduler = ASHAScheduler(
        "updates", max_t=sweep.steps, grace_period=sweep.first_rung, reduction_factor=sweep.keep, stop_last_trials=False
    )
    order = {"out": str(out), "here": str(Path.cwd())}

    class Told(tune.Callback):
        """Tells of trials that ended. Ray Tune stores its callbacks, so that they may hold nothing but values."""

        ended = 0

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.ended += 1
            last = trial.last_result or {}
            told = f"{last.get('label', '')} {last.get('updates', 0):,} updates, score {last.get('score', 0):.4g}"
            sys.stderr.write(f"sweep {self.ended}/{total} {told}\n")

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(play_trial, order=order), {"CPU": cpus, "GPU": gpus}),
        param_space={axis.name: _domain(tune, axis, sweep.search) for axis in sweep.axes},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            scheduler=scheduler,
            search_alg=algorithm,
            num_samples=1 if sweep.search == "grid" else sweep.trials,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(out),
            verbose=0,
            callbacks=[Told()],
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    )
    results = tuner.fit()
    if len(results.errors) == len(results):
        raise TrainingError(f"no trial came to its end: {results.errors[0]}", fix=f"read {out}/*.log")


def _domain(tune: Any, axis: SweepAxis, search: str) -> Any:
    if axis.values:
        return tune.grid_search(list(axis.values)) if search == "grid" else tune.choice(list(axis.values))
    if axis.whole:
        draw = tune.lograndint if axis.log else tune.randint
        return draw(int(axis.low), int(axis.high) + 1)
    return (tune.loguniform if axis.log else tune.uniform)(axis.low, axis.high)


def play_trial(config: dict[str, Any], order: dict[str, str]) -> None:
    """Train one trial, and report what it does on the development plan at each rung.

    Args:
        config: option -> value, as Ray Tune chose.
        order: where the sweep lies.

    """
    from ray import tune

    out = Path(order["out"])
    if not (out / SPACE).exists():
        raise FlowPolicyError(
            f"the node {socket.gethostname()} does not see {out}",
            expected="a folder on a disk that all nodes of the cluster share, under one path",
            fix="choose such an --out",
        )
    if Path(order["here"]).is_dir():
        os.chdir(order["here"])
    sweep = load_sweep(out)
    values = {axis.name: axis.text(config[axis.name]) for axis in sweep.axes}
    label = sweep.label(values)
    with held_alone(out / ".locks" / label, "flowpolicy sweep", wait=True), _training(sweep, values, out) as come_to:
        for updates in sweep.milestones:
            record = record_of(out, label, updates)
            if not record.exists():
                _judge(sweep, come_to(updates), record, out / f"{label}.log")
            tune.report({"score": score(load_evaluation(record)), "updates": updates, "label": label})


@contextlib.contextmanager
def _training(sweep: DevelopmentSweep, values: dict[str, str], out: Path) -> Iterator[Any]:
    """Yield a function that waits until a checkpoint is there; training begins, or goes on, when it is first asked."""
    run, log = out / sweep.label(values), out / f"{sweep.label(values)}.log"
    process = None

    def come_to(updates: int) -> Path:
        nonlocal process
        there = run / checkpoint.FOLDER / f"step_{updates:08d}"
        while not (there.exists() and checkpoint.newest(run) >= there.name):
            if process is None:
                begun = bool(checkpoint.newest(run))
                words = ("resume", str(run)) if begun else (*sweep.words(values), "--out", str(run))
                process = start_tied(words, log)
            elif process.poll() is not None and not there.exists():
                raise TrainingError(f"the trial {run.name} failed", fix=f"read {log}")
            time.sleep(0.5)
        return there

    try:
        yield come_to
    finally:
        if process is not None and process.poll() is None:
            if record_of(out, run.name, sweep.steps).exists():
                process.wait()  # it draws its curves
            process.kill()


def _judge(sweep: DevelopmentSweep, folder: Path, record: Path, log: Path) -> None:
    plan = ("--episodes", str(sweep.episodes), "--seed", str(sweep.plan_seed))
    with start_tied(("eval", str(folder), *plan, "--json", str(record)), log) as process:
        process.wait()
    if not record.exists():
        raise TrainingError(f"{folder} could not be evaluated", fix=f"read {log}")


def load_sweep(out: Path) -> DevelopmentSweep:
    """The sweep of a folder."""
    stated = read_object(out / SPACE)
    axes = tuple(SweepAxis(**{**axis, "values": tuple(axis["values"])}) for axis in stated["axes"])
    return DevelopmentSweep(**{**stated, "preset": tuple(stated["preset"]), "axes": axes})


def record_of(out: Path, label: str, updates: int) -> Path:
    """Where the outcomes of a trial at a rung stand."""
    return out / "records" / f"{label}-{updates}.json"


def score(evaluation: Evaluation) -> float:
    """What is maximised: the rate of success, or the return where success is not defined."""
    return evaluation.return_.mean if evaluation.success is None else evaluation.success.mean


def trials_of(out: Path) -> dict[str, dict[int, Evaluation]]:
    """Label -> updates -> outcomes, of everything that was judged so far."""
    found: dict[str, dict[int, Evaluation]] = {}
    for path in sorted((out / "records").glob("*.json")):
        label, _, updates = path.stem.rpartition("-")
        found.setdefault(label, {})[int(updates)] = load_evaluation(path)
    return found


def sweep_sheet(sweep: DevelopmentSweep, out: Path) -> tuple[Sheet, str]:
    """The table of a sweep, best first, and the label of the winner: the best of those that came to the end.

    Raises:
        TrainingError: none did.

    """
    trials = trials_of(out)
    best = {label: (max(rungs), score(rungs[max(rungs)])) for label, rungs in trials.items()}
    rank = sorted(best, key=best.__getitem__, reverse=True)
    if not rank or max(trials[rank[0]]) < sweep.steps:
        raise TrainingError(f"no trial of {out} came to {sweep.steps:,} updates", fix="run the same command again")
    rows: list[tuple[str, ...]] = []
    for label in rank:
        last = max(trials[label])
        told = [_told(trials[label].get(updates)) for updates in sweep.milestones]
        rows.append((label, *told, "" if last == sweep.steps else f"stopped at {last:,}"))
    ends = sum(max(rungs) == sweep.steps for rungs in trials.values())
    notes = (
        f"{len(trials)} trials, {ends} to the end; {sweep.episodes} states of development each (plan seed "
        f"{sweep.plan_seed}), 95 % intervals of one trial",
        f"The winner is the best of {ends}, chosen on these states: its own number flatters it.",
    )
    head = ("trial", *(f"{updates:,} updates" for updates in sweep.milestones), "")
    return Sheet(f"sweep of {sweep.preset[0]}, {sweep.search}", head, tuple(rows), notes), rank[0]


def _told(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "-"
    return number(evaluation.return_) if evaluation.success is None else percent(evaluation.success)


def words_of(preset: Sequence[str], values: dict[str, str]) -> list[str]:
    """Flags of one combination, as ``flowpolicy train`` takes them after the preset's name."""
    return [*preset[1:], *(word for name, text in values.items() for word in (f"--{name}", text))]
