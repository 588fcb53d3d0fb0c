"""Teachers of students: pinned by the hash of their weights, checked before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import digest
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.couplings import Table
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.teacher import Teacher


def load_teacher(config: Any, normalizer: Normalizer, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of a student, which scales actions as the student does and starts from the same noise.

    Args:
        config: of the student, :class:`flowpolicy.agents.cloning.flow.Flow`.
        normalizer: the student's.
        device: where the student is.

    Raises:
        CheckpointError: the teacher's weights are others than when the run was started.
        ConfigError: the teacher does not fit the student.

    """
    policy = Policy.load(Path(config.teacher), device=device)
    if config.teacher_weights and digest(policy.actor.state_dict()) != config.teacher_weights:
        raise CheckpointError(
            f"the teacher {config.teacher} has other weights now than when the run was started",
            fix="restore them, or start a new run",
        )
    if digest(policy.normalizer.state_dict()) != digest(normalizer.state_dict()):
        raise ConfigError(
            f"the teacher {config.teacher} scales observations and actions otherwise than this run",
            fix="distil on the training file of the teacher",
        )
    teacher = Teacher(policy)
    if teacher.sampling.source != config.flow.source:
        raise ConfigError(
            f"the teacher starts from the source {teacher.sampling.source}, the student from {config.flow.source}",
            fix="the same --flow.source for both",
        )
    teacher.require_evaluations(config.teacher_nfe)
    return teacher


def start_from(actor: nn.Module, policy: Policy, name: str) -> None:
    """Give a student the weights of its teacher, whose networks must be the same; ConfigError where they are not."""
    try:
        actor.load_state_dict(policy.actor.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"the student cannot start from the teacher {name}: {error}",
            fix="--no-agent.from-teacher, or the teacher's --agent.net and --agent.encoder",
        ) from error


def pairs(
    teacher: Teacher,
    coupling: Table,
    nfe: int,
    obs: Streams,
    data: Float[Tensor, "b h a"],
    noise: Float[Tensor, "b h a"],
    progress: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Pairs of the coupling 'table': made chunks of drawn noise, and inverted noise of a share of real chunks.

    Args:
        teacher: what makes them, in ``nfe`` evaluations each.
        coupling: share of real pairs, how they are inverted, and how the noise is annealed.
        nfe: evaluations of the teacher.
        obs: normalised observations.
        data: normalised chunks of the batch.
        noise: as drawn.
        progress: share of the planned updates that is done.
        generator: for the annealing.

    Returns:
        ``data``, ``noise`` and ``made`` (b,), see :meth:`flowpolicy.agents.cloning.flow.FlowAgent.taught`.

    """
    real = math.floor(coupling.real * len(data))
    noise = noise[real:]
    chunk = teacher.carry({name: value[real:] for name, value in obs.items()}, noise, nfe)
    if real:
        first = {name: value[:real] for name, value in obs.items()}
        noise = torch.cat([teacher.invert(first, data[:real], nfe, coupling.inversion), noise])
        chunk = torch.cat([data[:real], chunk])
    made = torch.arange(len(data), device=data.device) >= real
    return {"data": chunk, "noise": coupling.blend(noise, progress, generator), "made": made}
