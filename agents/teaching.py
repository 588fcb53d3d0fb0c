"""Teachers of students: pinned by the hash of their weights, checked before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import digest
from flowpolicy.data.normalize import Normalizer
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.teacher import Teacher


def load_teacher(config: Any, normalizer: Normalizer, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of a student, which scales actions as the student does and starts from the same noise.

    Args:
        config: of the student, :class:`flowpolicy.agents.flow.Flow`.
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
    if digest(policy.normalizer.state_dict()) != digest(normalizer.state_dict()):  # R21
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
