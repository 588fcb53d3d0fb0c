"""``flowpolicy train PRESET``."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any, cast

import tyro

from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.commands.flow_flags import axes_help, settled, split_flow_flags, with_flow
from flowpolicy.configs.benchmark_presets import require_file_of
from flowpolicy.configs.preset_table import find_preset, listing, preset_of
from flowpolicy.core.config import changed, nested
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.ranges import Count
from flowpolicy.core.remote_run import address_of
from flowpolicy.core.torchrun import rank_place, require_alone
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.nets.backbones import BACKBONES
from flowpolicy.nets.vision import ENCODERS
from flowpolicy.policy.actor import NETS
from flowpolicy.train import Experiment
from flowpolicy.train.compiling import decided
from flowpolicy.train.run import Run
from flowpolicy.train.training import train

VARIANTS: dict[str, dict[str, Any]] = {
    "agent.net": NETS,
    "agent.encoder": ENCODERS,
    "agent.encoder.backbone": BACKBONES,
}
"""Fields whose value is one of several configs: ``--agent.net unet`` picks it with its defaults."""


@dataclasses.dataclass(frozen=True)
class TrainCommand(Experiment):
    """An experiment and where it goes."""

    out: str = ""
    """Run folder; runs/PRESET-seedS unless given. s3://BUCKET/NAME and gs://BUCKET/NAME (extra 'remote') store every
    checkpoint there, whole or not at all; the run works in a folder of the cache that is named and kept."""
    seeds: Count = 1
    """Train so many runs together, in every update: with the seeds --seed, --seed + 1, ... They go to OUT-seedS, each a
    run like any other."""
    sweep: tuple[str, ...] = ()
    """Train runs together that differ in numbers of the agent: NAME=VALUE,VALUE,... as agent.alpha=1,10,100. A '*' in
    the name stands for anything: agent.*optimizer.lr=1e-4,3e-4. Of several every combination, each with every seed;
    they go to OUT-NAME-VALUE-seedS. One process on one device; flowpolicy sweep searches over many, any option, and
    stops the worse early."""
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
    if argv and argv[0] == "--list":
        sys.stdout.write(f"{listing(*argv[1:])}\n")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        if not argv:
            raise ConfigError(f"flowpolicy train: no preset given\n{_USAGE}{listing()}\n{_LIST}")
        sys.stdout.write(f"{_USAGE}{listing()}\n{_LIST}\n")
        return 0
    preset, rest = preset_of(argv[0], _data_path(argv[1:])), argv[1:]
    description, base = find_preset(preset)
    command = parse(base, rest, f"train {preset}", description)
    require_file_of(command, preset)
    if command.online.base:
        raise ConfigError("--online.base is set by another command", fix="flowpolicy online RUN")
    together = command.seeds > 1 or bool(command.sweep)
    if together and command.verify_resume:
        many = "--sweep" if command.sweep else "--seeds"
        raise ConfigError(f"--verify-resume with {many}: it proves one run", fix=f"leave {many} out for the proof")
    if command.verify_resume:
        require_alone("--verify-resume", "it starts processes of its own", "leave --verify-resume out")
        from flowpolicy.train.verify import verify_resume

        # The rehearsal is shorter, and must do what the run will.
        same = [*_without_destination(rest), "--compile", decided(command.experiment).compile]
        verify_resume([sys.executable, "-m", "flowpolicy", "train", preset, *same], command.steps)
    if together:
        from flowpolicy.train.sweep import members
        from flowpolicy.train.together import train_together

        sweep = members(command.experiment, command.sweep, command.seeds)
        folders = [f"{command.out or f'runs/{preset}'}{member.label}" for member in sweep]
        for made in train_together([member.experiment for member in sweep], folders):
            report(made)
        return 0
    report(train(command.experiment, command.out or f"runs/{preset}-seed{command.seed}"))
    return 0


_USAGE = "usage: flowpolicy train PRESET [-h] [OPTIONS]\n       flowpolicy train --list [WORD ...]\n\n"
_LIST = (
    "'flowpolicy train --list antmaze fql' lists those that hold all words; an agent alone, with --data.path of a "
    "published file's\nname, takes the preset of that file: flowpolicy train fql --data.path antmaze-large-play-v2.hdf5"
)


def _data_path(argv: Sequence[str]) -> str:
    """The training file that the flags name; empty where they name none."""
    told = [value for flag, value in itertools.pairwise(argv) if flag == "--data.path"]
    told += [flag.partition("=")[2] for flag in argv if flag.startswith("--data.path=")]
    return told[-1] if told else ""


def parse(base: Experiment, argv: Sequence[str], name: str, description: str) -> TrainCommand:
    """An experiment with the overrides of ``argv``, for the command ``name``."""
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(Experiment)}
    argv = compile_words(argv)
    for path, variants in VARIANTS.items():
        if f"--{path}" in argv:
            at = argv.index(f"--{path}")
            variant = argv[at + 1] if at + 1 < len(argv) else ""
            if variant not in variants:
                raise ConfigError(f"--{path} '{variant}' does not exist", expected=nearest(variant, variants))
            values = _picked(values, path.split("."), variants[variant])
            del argv[at : at + 2]
    picked, argv = split_flow_flags(argv)
    if picked is not None:
        values["agent"] = with_flow(values["agent"], picked)
    default: TrainCommand = TrainCommand(**values)
    if isinstance(values["agent"], Flow):
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
        agent = dataclasses.replace(cast(Flow, command.agent), flow=command.flow)
        if not any(word.partition("=")[0] == "--agent.nfe" for word in argv):
            agent = settled(agent, values["agent"], picked or {})
        agent.check(_action_size(command))
        command = dataclasses.replace(command, agent=agent)
    return command


def _action_size(command: TrainCommand) -> int:
    """Numbers in an action, by the environment, or by the file where that is all there is."""
    from flowpolicy.data.dataset import open_recording
    from flowpolicy.envs import RECORDED, find_env

    if command.env != RECORDED:
        return find_env(command.env).spec().action.size
    with open_recording(command.data) as recording:
        return recording.spec.action.size


def compile_words(argv: Sequence[str]) -> list[str]:
    """The words with ``--no-compile`` as ``--compile off``, and ``--compile`` alone as ``--compile on``."""
    words: list[str] = []
    for place, word in enumerate(argv):
        words += ["--compile", "off"] if word == "--no-compile" else [word]
        if word == "--compile" and (argv[place + 1 :] or ["--"])[0].startswith("--"):
            words.append("on")
    return words


def _picked(values: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The fields of an experiment with another value at a path of names."""
    owner, *inner = path
    return {**values, owner: changed(values[owner], nested(inner, value))}


def report(run: Run) -> None:
    """Say where a finished run and its pictures lie; rank 0 does."""
    if (place := rank_place()) and place.rank:
        return
    lines = [f"checkpoint {run.checkpoint}"]
    if stored := address_of(run.path):
        lines.append(f"stored     {stored.url}")
    for name, picture in (("curves", "curves.png"), ("episodes", "online.png"), ("corrected", "corrected.png")):
        if (run.path / picture).exists():
            lines.append(f"{name:<10} {run.path / picture}")
    sys.stdout.write("\n".join(lines) + "\n")


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
