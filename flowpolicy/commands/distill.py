"""``flowpolicy distill RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call

if TYPE_CHECKING:
    from flowpolicy.flows.axes.spec import FlowSpec
    from flowpolicy.train import Experiment

Method = Literal["reflow", "improved-reflow", "annealed-reflow", "k-step"]


def run(argv: Sequence[str]) -> int:
    """Train a student on the flow of a trained policy."""
    return call(distill, argv, "distill")


def distill(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    method: Method = "reflow",
    steps: int = 2_500,
    nfe: int = 1,
    teacher_nfe: int = 32,
    width: int = 0,
    depth: int = 0,
    lr: float = 1e-3,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train a student on pairs of noise and the chunk to which a trained policy carries it; straight paths, few steps.

    Every batch has fresh noise and the same observations as the teacher's training. A student of the teacher's size
    starts from its weights; a smaller one from random ones.

    Args:
        run: run folder of the teacher.
        method: 'reflow' (Rectified Flow), 'improved-reflow' (times at both ends and a robust loss, which these pairs
            allow), 'annealed-reflow' (SlimFlow: for small students), 'k-step' (times 0, 1/k, ... alone).
        steps: gradient updates.
        nfe: evaluations per chunk of the student; the k of 'k-step'.
        teacher_nfe: evaluations of the teacher per pair.
        width: width of a student with an MLP; 0 is the teacher's.
        depth: its hidden layers; 0 is the teacher's.
        lr: peak learning rate.
        seed: seeds weights, batches and noise.
        out: run folder of the student; RUN-METHOD unless given.

    """
    from flowpolicy.commands.train import train

    experiment = student(
        run, method, steps=steps, nfe=nfe, teacher_nfe=teacher_nfe, width=width, depth=depth, lr=lr, seed=seed
    )
    train(experiment, out or run.with_name(f"{run.name}-{method}"))


def student(
    run: Path,
    method: Method,
    *,
    steps: int,
    nfe: int,
    teacher_nfe: int,
    width: int,
    depth: int,
    lr: float,
    seed: int,
) -> Experiment:
    """The experiment that trains a student of the policy in ``run``.

    Raises:
        ConfigError: the teacher is no point on the axes, or its network has no width.

    """
    import dataclasses

    from flowpolicy.agents.flow import as_flow
    from flowpolicy.configs.presets import KINDS
    from flowpolicy.core.checkpoint import resolve
    from flowpolicy.core.config import decode
    from flowpolicy.core.errors import ConfigError
    from flowpolicy.core.files import digest, read_json
    from flowpolicy.nets.mlp import MLP
    from flowpolicy.policy.policy import Policy

    folder = resolve(run)
    experiment: Experiment = decode(read_json(folder / "config.json")["experiment"], KINDS, str(folder / "config.json"))
    teacher = as_flow(experiment.agent)
    net = teacher.net
    if width or depth:
        if not isinstance(net, MLP):
            raise ConfigError("--width or --depth for a teacher whose network is no MLP", fix="leave them out")
        net = MLP(width=width or net.width, depth=depth or net.depth)
    flow = pairs_spec(method, teacher.flow, nfe)
    same = net == teacher.net and not teacher.flow.consistency.two_time and not teacher.flow.guidance.null
    plain = teacher.flow.target.name == "velocity"
    agent = dataclasses.replace(
        teacher,
        flow=flow,
        nfe=nfe,
        net=net,
        dispersive=dataclasses.replace(teacher.dispersive, weight=0.0),
        teacher=str(folder.absolute()),
        teacher_weights=digest(Policy.load(folder).actor.state_dict()),
        teacher_nfe=teacher_nfe,
        from_teacher=same and plain,
        optimizer=dataclasses.replace(teacher.optimizer, lr=lr),
    )
    agent.check(Policy.load(folder).contract.spec.action.size)
    return dataclasses.replace(experiment, agent=agent, steps=steps, seed=seed)


def pairs_spec(method: Method, teacher: FlowSpec, nfe: int) -> FlowSpec:
    """How a student of this method is trained: a velocity on the teacher's path, from the teacher's noise."""
    import dataclasses

    from flowpolicy.flows.axes.registry import make
    from flowpolicy.flows.axes.spec import FlowSpec

    coupling = make("coupling", "table", **({"anneal": 0.6} if method == "annealed-reflow" else {}))
    flow = FlowSpec(interpolant=teacher.interpolant, source=teacher.source, coupling=coupling)
    if method == "improved-reflow":
        return dataclasses.replace(flow, time=make("time", "u-shape"), loss=make("loss", "pseudo-huber"))
    if method == "k-step":
        return dataclasses.replace(flow, time=make("time", "grid", steps=nfe))
    return flow
