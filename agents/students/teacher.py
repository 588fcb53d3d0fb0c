"""A frozen policy that students learn from: the chunks of a noise, the noise of a chunk, and velocities between.

A student names its teacher by path and by the hash of its weights; both are checked before anything is trained.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.agents.students.order import Inversion
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import digest
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.couplings import Table
from flowpolicy.flows.axes.solvers import Afp, Dynamics, Midpoint, Solver
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import BestOf, Decorated

_INNER = 8  # more iterations diverge where the step times the Lipschitz constant of the velocity is above 1


class Teacher:
    """What students ask a trained policy, of normalised observations and chunks. Answers carry no gradient.

    Args:
        policy: the teacher; stays as it is.

    Raises:
        ConfigError: the policy is no deterministic flow from noise that anybody can draw again.

    """

    def __init__(self, policy: Policy) -> None:
        sampler = policy.config.sampler
        sampling = policy.flow.sampling
        wrong = {
            f"it chooses among {sampler.candidates} candidates": isinstance(sampler, BestOf),
            "it is decorated": isinstance(sampler, Decorated),
            "it continues committed actions": sampler.prefix > 0,
            "its network describes segments, not a velocity": sampling.target.integrates,
            "it continues its previous chunk": sampling.continues,
            "its guidance chooses or changes chunks": sampling.guidance.candidates > 1
            or sampling.guidance.intermediate,
            "its source depends on the observation": sampling.source.conditioned,
            f"its solver '{sampling.solver.name}' draws noise on the way": sampling.solver.stochastic,
        }
        found = [reason for reason, holds in wrong.items() if holds]
        if found:
            raise ConfigError(
                f"the policy cannot teach: {' and '.join(found)}",
                expected="a deterministic flow from noise",
                fix="distil a run of Flow BC, of DM1 or of the flow laboratory with --flow.solver euler",
            )
        self.policy, self.sampling = policy, sampling

    def require_evaluations(self, nfe: int) -> None:
        """Raise ConfigError unless the teacher can carry noise in ``nfe`` evaluations."""
        self.sampling.grid(self.sampling.guidance.budget(nfe))

    @torch.no_grad()
    def carry(self, obs: Streams, noise: Float[Tensor, "b h a"], nfe: int) -> Float[Tensor, "b h a"]:
        """Normalised chunks to which the teacher's own solver carries the noise; not clamped."""
        # Cloned, since a tensor of inference mode cannot take part in a gradient.
        return self.policy.carry(obs, noise, nfe).clone()

    @torch.no_grad()
    def dynamics(self, obs: Streams) -> Dynamics:
        """The teacher's velocity for fixed observations; on a flow map, that of its diagonal."""
        return self.policy.dynamics(obs)

    @torch.no_grad()
    def velocity(self, obs: Streams, x: Float[Tensor, "b h a"], t: Float[Tensor, " b"]) -> Float[Tensor, "b h a"]:
        """Velocity at normalised points x and times t."""
        return self.dynamics(obs).velocity(x, t)

    @torch.no_grad()
    def along(
        self, obs: Streams, noise: Float[Tensor, "b h a"], nodes: tuple[int, ...], steps: int
    ) -> Float[Tensor, "k b h a"]:
        """States after ``nodes`` of ``steps`` equal Euler steps; nodes rise, 0 is the noise."""
        field, x, states = self.dynamics(obs), noise, []
        for k in range(nodes[-1] + 1):
            if k in nodes:
                states.append(x)
            if k < nodes[-1]:
                x = x + field.at(x, k / steps) / steps
        return torch.stack(states)

    @torch.no_grad()
    def invert(
        self, obs: Streams, chunk: Float[Tensor, "b h a"], nfe: int, inversion: Inversion
    ) -> Float[Tensor, "b h a"]:
        """The noise that the teacher's flow carries to normalised chunks.

        Args:
            obs: normalised observations.
            chunk: normalised chunks.
            nfe: evaluations; 'exact' spends eight times as many.
            inversion: 'afp' (SteerFlow), 'midpoint' (RF-Solver), or 'exact': fixed-point iterations that undo Euler's
                steps where the step times the Lipschitz constant of the velocity is below 1.

        """
        solver = inverter(inversion)
        steps, start = solver.steps(nfe), self.sampling.target.start
        grid = tuple(start + (1 - start) * k / steps for k in range(steps + 1))
        return solver.invert(self.dynamics(obs), chunk, grid)

    def pairs(
        self,
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
            coupling: share of real pairs, how they are inverted, and how the noise is annealed.
            nfe: evaluations for each.
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
        chunk = self.carry({name: value[real:] for name, value in obs.items()}, noise, nfe)
        if real:
            first = {name: value[:real] for name, value in obs.items()}
            noise = torch.cat([self.invert(first, data[:real], nfe, coupling.inversion), noise])
            chunk = torch.cat([data[:real], chunk])
        made = torch.arange(len(data), device=data.device) >= real
        return {"data": chunk, "noise": coupling.blend(noise, progress, generator), "made": made}


def inverter(inversion: Inversion) -> Solver:
    """The solver that runs a flow back; its ``steps`` refuses evaluations that it cannot spend."""
    return Midpoint() if inversion == "midpoint" else Afp(_INNER if inversion == "exact" else 1)


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
