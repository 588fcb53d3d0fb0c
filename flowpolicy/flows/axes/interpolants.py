"""The interpolant axis: the path from noise (t = 0) to data (t = 1), and what a velocity on it says about both.

``x_t = alpha noise + beta data + gamma z`` with alpha(0) = beta(1) = 1 and alpha(1) = beta(0) = gamma(0) = gamma(1)
= 0; z is a standard Gaussian that is drawn anew. Where the noise is a standard Gaussian too, noise and z act as one
Gaussian of deviation ``sqrt(alpha^2 + gamma^2)``, and velocity, data, noise and score determine each other.

Sources: Stochastic Interpolants (arXiv 2303.08797); conversions: The Principles of Diffusion Models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import NonNegative, Positive
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register
from flowpolicy.flows.straight import rows

STOCHASTIC_INTERPOLANTS = Reference(
    "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions", "2303.08797"
)
PRINCIPLES = Reference("The Principles of Diffusion Models", "2510.21890")


class Coefficients(NamedTuple):
    """Coefficients of a path and their derivatives in time."""

    alpha: Float[Tensor, " b"]
    beta: Float[Tensor, " b"]
    gamma: Float[Tensor, " b"]
    dalpha: Float[Tensor, " b"]
    dbeta: Float[Tensor, " b"]
    dgamma: Float[Tensor, " b"]


class Effective(NamedTuple):
    """A path without z: deviation of all noise together, factor of the data, derivatives, Wronskian."""

    sigma: Float[Tensor, "b *ones"]
    beta: Float[Tensor, "b *ones"]
    dsigma: Float[Tensor, "b *ones"]
    dbeta: Float[Tensor, "b *ones"]
    wronskian: Float[Tensor, "b *ones"]
    """``sigma dbeta - dsigma beta``; 1 on the straight path."""


@dataclasses.dataclass(frozen=True)
class Interpolant(Value):
    """Base of the paths: a subclass gives the coefficients, everything else follows."""

    latent: ClassVar[bool] = False
    """Whether the path has a z."""
    continues: ClassVar[bool] = False
    """Whether it starts from the actions before the chunk."""
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Times at which training evaluates the path; inside (0, 1) where a derivative is infinite at an end."""

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        """Coefficients at the times t in [0, 1]."""
        raise NotImplementedError

    def begin(self, noise: Float[Tensor, "b h a"], past: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The point at t = 0 of a path that ``continues``; ``past`` are the actions before the chunk, scaled."""
        return noise

    def inside(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Times in [0, 1] scaled to ``bounds``."""
        low, high = self.bounds
        return t if (low, high) == (0.0, 1.0) else low + (high - low) * t

    def point(
        self, noise: Float[Tensor, "b *d"], data: Float[Tensor, "b *d"], t: Float[Tensor, " b"], z: Tensor | None = None
    ) -> Float[Tensor, "b *d"]:
        """The point x_t; ``z`` like data where the path is latent."""
        c = self.coefficients(t)
        x = rows(c.alpha, data) * noise + rows(c.beta, data) * data
        return x if z is None else x + rows(c.gamma, data) * z

    def velocity(
        self, noise: Float[Tensor, "b *d"], data: Float[Tensor, "b *d"], t: Float[Tensor, " b"], z: Tensor | None = None
    ) -> Float[Tensor, "b *d"]:
        """Time derivative of :meth:`point`: the regression target of flow matching."""
        c = self.coefficients(t)
        v = rows(c.dalpha, data) * noise + rows(c.dbeta, data) * data
        return v if z is None else v + rows(c.dgamma, data) * z

    def effective(self, t: Float[Tensor, " b"], like: Float[Tensor, "b *d"]) -> Effective:
        """The path with noise and z taken together, for standard Gaussian noise or a path without z."""
        c = self.coefficients(t)
        sigma, dsigma = c.alpha, c.dalpha
        if self.latent:
            sigma = (c.alpha.square() + c.gamma.square()).sqrt()
            dsigma = (c.alpha * c.dalpha + c.gamma * c.dgamma) / sigma
        wronskian = sigma * c.dbeta - dsigma * c.beta
        return Effective(*(rows(value, like) for value in (sigma, c.beta, dsigma, c.dbeta, wronskian)))

    def data(self, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """Posterior mean of the data, ``(sigma v - dsigma x) / wronskian``."""
        e = self.effective(t, x)
        return (e.sigma * v - e.dsigma * x) / e.wronskian

    def noise(
        self, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """Posterior mean of the noise that the path adds, in units of its deviation sigma."""
        e = self.effective(t, x)
        return (e.dbeta * x - e.beta * v) / e.wronskian

    def from_data(
        self, x: Float[Tensor, "b *d"], data: Float[Tensor, "b *d"], t: Float[Tensor, " b"], floor: float = 0.0
    ) -> Float[Tensor, "b *d"]:
        """Velocity of a data prediction; sigma is kept above ``floor``."""
        e = self.effective(t, x)
        return (e.dsigma * x + e.wronskian * data) / e.sigma.clamp(min=floor)

    def from_noise(
        self, x: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], t: Float[Tensor, " b"], floor: float = 0.0
    ) -> Float[Tensor, "b *d"]:
        """Velocity of a noise prediction; beta is kept above ``floor``."""
        e = self.effective(t, x)
        return (e.dbeta * x - e.wronskian * noise) / e.beta.clamp(min=floor)


@register(
    "interpolant",
    "linear",
    Reference("Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", "2209.03003"),
    Reference("Flow Matching for Generative Modeling", "2210.02747"),
)
@dataclasses.dataclass(frozen=True)
class Linear(Interpolant):
    """Straight line: alpha = 1 - t, beta = t (Rectified Flow, arXiv 2209.03003)."""

    @override
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return Coefficients(1 - t, t, zero, -one, one, zero)


@register("interpolant", "trig", STOCHASTIC_INTERPOLANTS)
@dataclasses.dataclass(frozen=True)
class Trigonometric(Interpolant):
    """Quarter circle: alpha = cos(pi t / 2), beta = sin(pi t / 2) (Stochastic Interpolants, arXiv 2303.08797)."""

    @override
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        half, zero = math.pi / 2, torch.zeros_like(t)
        sin, cos = (half * t).sin(), (half * t).cos()
        return Coefficients(cos, sin, zero, -half * sin, half * cos, zero)


@register(
    "interpolant",
    "vp",
    Reference("Score-Based Generative Modeling through Stochastic Differential Equations", "2011.13456"),
    Reference("Rectified Diffusion: Straightness Is Not Your Need in Rectified Flow", "2410.07303"),
)
@dataclasses.dataclass(frozen=True)
class VariancePreserving(Interpolant):
    """Diffusion with a linear noise rate: alpha^2 + beta^2 = 1, beta = exp(-integral of the rate / 2).

    The published path keeps exp(-5) of the data at t = 0. Here beta is shifted and scaled so that it is 0 there
    (arXiv 2305.08891, section 3.1): a policy starts from noise alone.
    """

    low: Positive = 0.1
    """Noise rate at the data end."""
    high: float = 20.0
    """Noise rate at the noise end."""
    bounds: ClassVar[tuple[float, float]] = (0.0, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ConfigError(f"the path 'vp' has the rates {self.low} and {self.high}", expected="0 < low <= high")

    @override
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        back, zero = 1 - t, torch.zeros_like(t)
        kept = torch.exp(-0.25 * back.square() * (self.high - self.low) - 0.5 * back * self.low)
        least = math.exp(-0.25 * (self.high - self.low) - 0.5 * self.low)
        beta = (kept - least) / (1 - least)
        dbeta = kept * 0.5 * (back * (self.high - self.low) + self.low) / (1 - least)
        alpha = (1 - beta.square()).clamp(min=0).sqrt()
        return Coefficients(alpha, beta, zero, -beta * dbeta / alpha, dbeta, zero)


@register("interpolant", "latent", STOCHASTIC_INTERPOLANTS)
@dataclasses.dataclass(frozen=True)
class Latent(Interpolant):
    """Straight line with a latent Gaussian of deviation gamma (Stochastic Interpolants, arXiv 2303.08797)."""

    gamma: Literal["brownian", "quadratic", "sine"] = "quadratic"
    """sqrt(t (1 - t)), t (1 - t), or sin(pi t)^2."""
    scale: float = 1.0
    """Factor of gamma."""
    latent: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.001, 0.999)

    @override
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        one, bump = torch.ones_like(t), t * (1 - t)
        if self.gamma == "brownian":
            gamma = bump.sqrt()
            slope = (1 - 2 * t) / (2 * gamma)
        elif self.gamma == "quadratic":
            gamma, slope = bump, 1 - 2 * t
        else:
            gamma, slope = (math.pi * t).sin().square(), math.pi * (2 * math.pi * t).sin()
        return Coefficients(1 - t, t, self.scale * gamma, -one, one, self.scale * slope)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Without a Gaussian source, z and noise cannot be told apart in a data or noise prediction."""
        other = _converting(spec)
        if other is not None and not spec.source.gaussian:
            yield Conflict(
                f"{self.flag} with {spec.source.flag} and {other.flag}",
                "with a latent z, data and noise follow from the velocity only where the source is Gaussian",
                "--flow.source normal, or --flow.target velocity with --flow.solver euler and --flow.guidance none",
            )


@register("interpolant", "encode-decode", STOCHASTIC_INTERPOLANTS)
@dataclasses.dataclass(frozen=True)
class EncodeDecode(Interpolant):
    """Through pure z at t = 1/2: alpha and beta are cos(pi t)^2 on their half (Stochastic Interpolants, table 5)."""

    latent: ClassVar[bool] = True

    @override
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        early, kept, slope = t < 0.5, (math.pi * t).cos().square(), -math.pi * (2 * math.pi * t).sin()
        zero = torch.zeros_like(t)
        return Coefficients(
            torch.where(early, kept, zero),
            torch.where(early, zero, kept),
            (math.pi * t).sin().square(),
            torch.where(early, slope, zero),
            torch.where(early, zero, slope),
            -slope,
        )

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Before t = 1/2 the path holds no data: only a velocity is determined there."""
        other = _converting(spec)
        if other is not None:
            yield Conflict(
                f"{self.flag} with {other.flag}",
                "before t = 1/2 the path holds no data, so that nothing but the velocity is determined",
                "--flow.target velocity and --flow.solver euler, or --flow.interpolant latent",
            )


@register("interpolant", "bridge", STOCHASTIC_INTERPOLANTS)
@dataclasses.dataclass(frozen=True)
class PreviousChunkBridge(Latent):
    """From the actions that were executed last to the chunk: a two-sided interpolant (arXiv 2303.08797).

    At t = 0 are the h actions before the chunk, plus Gaussian noise of standard deviation ``spread``; a latent Gaussian
    widens the path. Actions before the start of the episode are taken to be the middle of the action range, in training
    and in acting, so the first chunk of an episode starts from ``N(0, spread^2)`` after scaling.
    """

    spread: NonNegative = 0.1
    """Standard deviation at the start; 0 makes the policy deterministic."""
    continues: ClassVar[bool] = True

    @override
    def begin(self, noise: Float[Tensor, "b h a"], past: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        return past + self.spread * noise

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """What takes the start for a standard Gaussian, or pairs it anew."""
        wrong = {
            spec.target.flag: spec.target.converts,
            spec.solver.flag: spec.solver.converts or spec.solver.needs_score,
            spec.guidance.flag: spec.guidance.converts,
            spec.source.flag: spec.source.name != "normal",
            spec.coupling.flag: spec.coupling.name != "independent",
        }
        for flag in (flag for flag, is_wrong in wrong.items() if is_wrong):
            yield Conflict(
                f"{self.flag} with {flag}",
                "the flow starts from the previous chunk, not from noise",
                "--flow.target velocity, --flow.solver euler, --flow.source normal and --flow.coupling independent",
            )


def _converting(spec: Any) -> Value | None:
    """The value of a spec that turns velocities into data, if any."""
    return next((value for value in (spec.target, spec.solver, spec.guidance) if value.converts), None)
