"""Axis 5, what the network predicts. Errors are weighted so that they are errors of the velocity."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import PRINCIPLES, Interpolant
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register
from flowpolicy.flows.momentum import Momentum

_SAMPLING_FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class Target(Value):
    """Base of the prediction targets."""

    @property
    def modes(self) -> int:
        """Number of velocities that the network gives for a whole segment; 0 where it gives one for one time."""
        return 0

    @property
    def start(self) -> float:
        """Time at which sampling starts; above 0 where the prediction says nothing about the data at 0."""
        return 0.0

    def read(self, prediction: Float[Tensor, "b h n"]) -> Momentum:
        """The velocities of a whole segment; ConfigError where ``modes`` is 0."""
        raise ConfigError(f"{self.flag} predicts no segment", fix="--flow.target segment")

    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        """Velocity of a prediction of the network, for sampling."""
        raise NotImplementedError

    def error(
        self,
        prediction: Float[Tensor, "b *d"],
        noise: Float[Tensor, "b *d"],
        data: Float[Tensor, "b *d"],
        z: Tensor | None,
        t: Float[Tensor, " b"],
        path: Interpolant,
    ) -> Float[Tensor, "b *d"]:
        """Error of a prediction in units of the velocity."""
        raise NotImplementedError


@register("target", "velocity", Reference("Flow Matching for Generative Modeling", "2210.02747"))
@dataclasses.dataclass(frozen=True)
class Velocity(Target):
    """The time derivative of the path (Lipman et al. 2023, arXiv 2210.02747)."""

    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Target`."""
        return prediction

    def error(
        self,
        prediction: Float[Tensor, "b *d"],
        noise: Float[Tensor, "b *d"],
        data: Float[Tensor, "b *d"],
        z: Tensor | None,
        t: Float[Tensor, " b"],
        path: Interpolant,
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Target`."""
        return prediction - path.velocity(noise, data, t, z)


@register(
    "target", "data", Reference("RiT: Vanilla Diffusion Transformers Suffice in Representation Space"), PRINCIPLES
)
@dataclasses.dataclass(frozen=True)
class Data(Target):
    """The chunk itself, with the loss of the velocity (RiT): squared errors weigh ``1 / (1 - t)^2``."""

    floor: float = 0.05
    """Smallest deviation of the noise that the weight divides by in training: near the data it would explode."""

    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Target`."""
        return path.from_data(x, prediction, t, _SAMPLING_FLOOR)

    def error(
        self,
        prediction: Float[Tensor, "b *d"],
        noise: Float[Tensor, "b *d"],
        data: Float[Tensor, "b *d"],
        z: Tensor | None,
        t: Float[Tensor, " b"],
        path: Interpolant,
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Target`."""
        e = path.effective(t, data)
        return (prediction - data) * e.wronskian / e.sigma.clamp(min=self.floor)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R12: without a floor the weight is infinite at the data."""
        if self.floor <= 0:
            yield Conflict(
                f"{self.flag} --flow.target.floor {self.floor:g}",
                "its weight 1 / (1 - t) is infinite at the data",
                "--flow.target.floor 0.05, or --flow.target velocity",
            )
        yield from _needs_separable(self, spec)


@register("target", "noise", Reference("Denoising Diffusion Probabilistic Models", "2006.11239"), PRINCIPLES)
@dataclasses.dataclass(frozen=True)
class Noise(Target):
    """The noise, with the loss of the velocity: squared errors weigh ``1 / t^2`` (arXiv 2006.11239).

    At t = 0 the noise says nothing about the data, so that sampling starts a little later.
    """

    floor: float = 0.05
    """Smallest factor of the data that is divided by in training, and time at which sampling starts."""

    @property
    def start(self) -> float:
        """See :class:`Target`."""
        return self.floor

    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Target`."""
        return path.from_noise(x, prediction, t, _SAMPLING_FLOOR)

    def error(
        self,
        prediction: Float[Tensor, "b *d"],
        noise: Float[Tensor, "b *d"],
        data: Float[Tensor, "b *d"],
        z: Tensor | None,
        t: Float[Tensor, " b"],
        path: Interpolant,
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Target`."""
        e = path.effective(t, data)
        whole = path.point(noise, 0 * data, t, z) / e.sigma.clamp(min=1e-6) if path.latent else noise
        return (prediction - whole) * e.wronskian / e.beta.clamp(min=self.floor)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R12: no clamp, or no second evaluation."""
        if not 0 < self.floor < 1:
            yield Conflict(
                f"{self.flag} --flow.target.floor {self.floor:g}",
                "its weight 1 / t is infinite at the noise",
                "--flow.target.floor 0.05, or --flow.target velocity",
            )
        if setting.nfe is not None and setting.nfe <= spec.guidance.total(1):
            yield Conflict(
                f"{self.flag} with one evaluation of the solver (--agent.nfe {setting.nfe})",
                "at the noise a noise prediction says nothing about the data",
                "--agent.nfe 4, or --flow.target data",
            )
        yield from _needs_separable(self, spec)


def _needs_separable(target: Target, spec: Any) -> Iterator[Conflict]:
    if spec.consistency.two_time:
        yield Conflict(
            f"{target.flag} with {spec.consistency.flag}",
            "the network of a flow map predicts a mean velocity over an interval",
            "--flow.target velocity",
        )
