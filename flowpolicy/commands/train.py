"""``flowpolicy train PRESET``."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from flowpolicy.commands.arguments import pick
from flowpolicy.commands.flow_flags import axes_help, settled, split_flow_flags, with_flow
from flowpolicy.commands.progress import training_progress
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.checkpoint import newest
from flowpolicy.core.errors import ConfigError, FlowPolicyError, from_system, nearest
from flowpolicy.core.files import held_alone
from flowpolicy.core.memory import keep_freed_memory
from flowpolicy.core.protocols import EnvConfig, VecEnv
from flowpolicy.flows.axes.spec import FlowSpec
from flowpolicy.policy.actor import NETS
from flowpolicy.train import Experiment, Trainer
from flowpolicy.train.loop import Report

VARIANTS: dict[str, dict[str, Any]] = {"agent.net": NETS}
"""Fields whose value is one of several configs: ``--agent.net unet`` picks it with its defaults."""


@dataclasses.dataclass(frozen=True)
class TrainCommand(Experiment):
    """An experiment and where it goes."""

    out: str = ""
    """Run folder; runs/PRESET-seedS unless given."""
    verify_resume: bool = False
    """First prove on this machine that a killed and resumed run equals an uninterrupted one, bit for bit."""

    @property
    def experiment(self) -> Experiment:
        """The experiment alone."""
        return Experiment(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Experiment)})


@dataclasses.dataclass(frozen=True)
class FlowTrainCommand(TrainCommand):
    """An experiment of the flow laboratory."""

    flow: FlowSpec = FlowSpec()
    """One value per axis."""


def run(argv: Sequence[str]) -> int:
    """Train a preset, with any field overridden by a flag."""
    preset, rest = pick(argv, PRESETS, "train", "preset")
    description, base = PRESETS[preset]
    command = parse(base, rest, f"train {preset}", description)
    if command.online.base:
        raise ConfigError("--online.base is set by another command", fix="flowpolicy online RUN")
    if command.verify_resume:
        from flowpolicy.train.verify import verify_resume

        verify_resume([sys.executable, "-m", "flowpolicy", "train", preset, *_without_destination(rest)], command.steps)
    folder = Path(command.out or f"runs/{preset}-seed{command.seed}")
    train(command.experiment, folder)
    return 0


def parse(base: Experiment, argv: Sequence[str], name: str, description: str) -> TrainCommand:
    """An experiment with the overrides of ``argv``, for the command ``name``."""
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(Experiment)}
    argv = list(argv)
    for path, variants in VARIANTS.items():
        if f"--{path}" in argv:
            at = argv.index(f"--{path}")
            variant = argv[at + 1] if at + 1 < len(argv) else ""
            if variant not in variants:
                raise ConfigError(f"--{path} '{variant}' does not exist", expected=nearest(variant, variants))
            owner, field = path.split(".")
            values[owner] = dataclasses.replace(values[owner], **{field: variants[variant]})
            del argv[at : at + 2]
    picked, argv = split_flow_flags(argv)
    default: TrainCommand = TrainCommand(**values)
    if picked is not None:
        values["agent"] = with_flow(values["agent"], picked)
        default = FlowTrainCommand(**values, flow=values["agent"].flow)
    command = tyro.cli(
        type(default),
        default=default,
        args=argv,
        prog=f"flowpolicy {name}",
        description=description + axes_help(values["agent"]),
        config=(tyro.conf.AvoidSubcommands,),
    )
    if isinstance(command, FlowTrainCommand):
        from flowpolicy.envs import find_env

        agent = dataclasses.replace(command.agent, flow=command.flow)
        if not any(word.partition("=")[0] == "--agent.nfe" for word in argv):
            agent = settled(agent, values["agent"], picked or {})
        command = dataclasses.replace(command, agent=agent)
        command.agent.check(find_env(command.env).spec().action.size)
    return command


def train(experiment: Experiment, folder: Path, *, resume: bool = False) -> None:
    """Train or resume with progress on the console, then draw the learning curves. Nobody else may do so meanwhile."""
    keep_freed_memory()
    with held_alone(folder, f"flowpolicy {'resume' if resume else 'train'}"):
        _train(experiment, folder, resume)


def _train(experiment: Experiment, folder: Path, resume: bool) -> None:
    from flowpolicy.envs import find_env
    from flowpolicy.evaluate.curves import draw_curves
    from flowpolicy.train.post_training import take_over

    experiment = take_over(experiment)
    env = find_env(experiment.env)
    if not experiment.data.path:
        experiment = dataclasses.replace(experiment, data=_generate(experiment, folder))
    # Absolute, so that the run can be resumed from another working directory.
    data = dataclasses.replace(experiment.data, path=str(Path(experiment.data.path).absolute()))
    experiment = dataclasses.replace(experiment, data=data)
    with _slot(experiment, env) as slot:
        trainer = Trainer(experiment, folder, env.spec(), resume=resume, slot=slot)
        with training_progress(trainer, folder) as report:
            last = _trained(trainer, report)
    draw_curves(folder / "metrics.csv", folder / "curves.png")
    sys.stdout.write(f"checkpoint {last}\ncurves     {folder / 'curves.png'}\n")
    if (folder / "episodes.csv").exists():
        draw_curves(folder / "episodes.csv", folder / "online.png", "environment step")
        sys.stdout.write(f"episodes   {folder / 'online.png'}\n")
    if experiment.base:
        from flowpolicy.evaluate.corrected_figure import draw_corrected

        draw_corrected(folder / "metrics.csv", folder / "corrected.png")
        sys.stdout.write(f"corrected  {folder / 'corrected.png'}\n")


def _trained(trainer: Trainer, report: Report) -> Path:
    """Train to the end; whoever has to stop it is told how to go on from what there is."""
    try:
        return trainer.train(report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(trainer)) from None
    except (OSError, FlowPolicyError) as error:
        refused = from_system(error if isinstance(error, OSError) else error.__cause__ or error)
        if refused is None:
            raise
        what = error.what if isinstance(error, FlowPolicyError) else refused.what
        raise FlowPolicyError(what, fix=f"free some space or mend what is said; {_how_to_go_on(trainer)}") from error


def _how_to_go_on(trainer: Trainer) -> str:
    if newest(trainer.run):
        return f"go on from {newest(trainer.run)} with: flowpolicy resume {shlex.quote(str(trainer.run))}"
    return (
        f"there is no checkpoint yet (the first is written after {trainer.experiment.checkpoint_every} updates: "
        "--checkpoint-every); the same command starts anew"
    )


@contextmanager
def _slot(experiment: Experiment, env: EnvConfig) -> Iterator[VecEnv | None]:
    """One environment to step in, where the experiment asks for steps."""
    if not experiment.online.base:
        yield None
        return
    slot = env.make(1)
    try:
        yield slot
    finally:
        slot.close()


def _generate(experiment: Experiment, folder: Path) -> Any:
    """Toy demonstrations made on the spot; other environments need a file."""
    from flowpolicy.envs.demonstrators import make_demonstrations

    if experiment.env != "toy":
        raise ConfigError(
            "no training file is given",
            expected="--data.path FILE",
            fix=f"make one with: flowpolicy data make {experiment.env} --episodes 200 --out FILE",
        )
    path = folder / "toy.hdf5"
    if not newest(folder):  # what an earlier attempt left there may be of another seed
        make_demonstrations("toy", path, episodes=50, seed=experiment.seed, quality="expert", workers=1)
    return dataclasses.replace(experiment.data, path=str(path))


def _without_destination(argv: Sequence[str]) -> list[str]:
    """The flags without --out and --verify-resume, which the verification chooses itself."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith(("--out=", "--verify-resume", "--verify_resume")):
            kept.append(word)
    return kept
