"""A point on the axes: how a flow policy is trained and how it acts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.flows.axes.consistency import Consistency, NoConsistency
from flowpolicy.flows.axes.couplings import Coupling, Independent
from flowpolicy.flows.axes.guidance import Fields, Guidance, NoGuidance, Situation
from flowpolicy.flows.axes.interpolants import Interpolant, Linear
from flowpolicy.flows.axes.losses import Loss, Squared
from flowpolicy.flows.axes.registry import AXES, TAGS, Value
from flowpolicy.flows.axes.schedules import Schedule, UniformSteps
from flowpolicy.flows.axes.solvers import Dynamics, Euler, Solver
from flowpolicy.flows.axes.sources import Normal, Source
from flowpolicy.flows.axes.targets import Target, Velocity
from flowpolicy.flows.axes.time_laws import TimeLaw, Uniform

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Prediction at (x, s, t); a network of one time ignores t."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The part of a spec that a policy needs to act; stored in its checkpoint."""

    interpolant: Interpolant = Linear()
    """Path from noise to data."""
    source: Source = Normal()
    """Law of the initial noise."""
    target: Target = Velocity()
    """What the network predicts."""
    solver: Solver = Euler()
    """How the noise is carried to the data."""
    schedule: Schedule = UniformSteps()
    """Where the solver puts its steps."""
    guidance: Guidance = NoGuidance()
    """How the velocity is steered."""
    two_time: bool = False
    """Whether the network is a flow map."""

    @property
    def continues(self) -> bool:
        """Whether a decision depends on the previous chunk."""
        return self.interpolant.continues or self.source.continues or self.guidance.continues

    @property
    def belongs_to(self) -> str:
        """Hash of the weights that solver or schedule were fitted on; empty where nothing is fitted."""
        return self.solver.belongs_to or self.schedule.belongs_to

    def grid(self, evaluations: int) -> tuple[float, ...]:
        """Times of the steps that so many evaluations of the solver pay for."""
        start = self.target.start
        return tuple(start + (1 - start) * t for t in self.schedule.grid(self.solver.steps(evaluations)))

    def dynamics(self, full: Network, null: Network, parts: Sequence[Network], at: Situation) -> Dynamics:
        """The guided velocity, and the guided mean velocity of a flow map.

        Args:
            full: network given the whole observation.
            null: given none of it.
            parts: given one of the observations that the guidance hides.
            at: what else the guidance may know.

        """

        def velocity(network: Network) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x, t: self.target.velocity(network(x, t, t), x, t, self.interpolant)

        fields = Fields(velocity(full), velocity(null), tuple(velocity(part) for part in parts))
        mean = full if self.two_time else None
        if self.target.integrates:
            mean = lambda x, s, t: self.target.mean(full(x, s, t), s, t)  # noqa: E731
        guided = None if mean is None else self.guidance.mean(mean, at)
        return Dynamics(self.guidance.field(fields, at), self.interpolant, guided)

    def generate(
        self,
        flow: Dynamics,
        noise: Float[Tensor, "b h a"],
        evaluations: int,
        generator: torch.Generator | None,
    ) -> Float[Tensor, "b h a"]:
        """Chunks for the noise.

        Args:
            flow: from :meth:`dynamics`.
            noise: from ``source``.
            evaluations: of the solver for one chunk, guidance aside; ConfigError where it cannot spend them.
            generator: source of noise on the way; stochastic solvers need it.

        """
        return self.solver.solve(flow, noise, self.grid(evaluations), evaluations, generator)


@dataclasses.dataclass(frozen=True)
class FlowSpec:
    """One value per axis."""

    interpolant: Interpolant = Linear()
    """Path from noise to data."""
    source: Source = Normal()
    """Law of the initial noise."""
    coupling: Coupling = Independent()
    """Which noise is paired with which chunk."""
    time: TimeLaw = Uniform()
    """Law of the flow times in training."""
    target: Target = Velocity()
    """What the network predicts."""
    loss: Loss = Squared()
    """Shape of the loss."""
    consistency: Consistency = NoConsistency()
    """What a flow map is trained on off the diagonal; 'none' trains a velocity."""
    solver: Solver = Euler()
    """How the noise is carried to the data."""
    schedule: Schedule = UniformSteps()
    """Where the solver puts its steps."""
    guidance: Guidance = NoGuidance()
    """How the velocity is steered while acting."""

    def values(self) -> Iterator[Value]:
        """The value of every axis, in order."""
        for axis in AXES:
            yield getattr(self, axis)

    def sampling(self) -> Sampling:
        """What the policy needs to act."""
        shared = {field.name for field in dataclasses.fields(Sampling)} & set(AXES)
        return Sampling(**{name: getattr(self, name) for name in shared}, two_time=self.consistency.two_time)


TAGS["flow_spec"] = FlowSpec
TAGS["sampling"] = Sampling
