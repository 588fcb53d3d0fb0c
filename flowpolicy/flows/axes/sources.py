"""The source axis: the law of the noise that a chunk starts from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core import ranks
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.noise import NoiseLaw
from flowpolicy.core.ranges import NonNegative, Positive, Range
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register
from flowpolicy.flows.straight import rows

_SAFE_MOMENTS = 4


@dataclasses.dataclass(frozen=True)
class Source(Value):
    """Base of the sources."""

    gaussian: ClassVar[bool] = True
    """Whether noise is Gaussian given the observation."""
    standard: ClassVar[bool] = True
    """Whether it is N(0, I): score, stochastic sampling and likelihood formulas hold for it only."""
    conditioned: ClassVar[bool] = False
    """Whether a network of the observation shapes it."""
    continues: ClassVar[bool] = False
    """Whether it looks at the previous chunk."""
    inputs: ClassVar[int] = 0
    """Numbers that the flow network is shown beside the condition."""

    @property
    def law(self) -> NoiseLaw:
        """Law of the noise before a network of the observation shapes it; engines without torch draw from it too."""
        return NoiseLaw()

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "b *d"]:
        """Noise from the law; one draw per row."""
        return self.law.sample(shape, generator)

    @property
    def draws_while_acting(self) -> bool:
        """Whether acting takes chance beside this noise."""
        return False

    def begin(self, history: Float[Tensor, "b o n"]) -> Float[Tensor, " b"]:
        """Time at which every row starts on the way to its previous chunk, for scaled observation histories."""
        return torch.zeros_like(history[:, 0, 0])

    def shares(self, batch: int, generator: torch.Generator) -> Float[Tensor, " b"] | None:
        """How far each row's noise is moved to the conditioned law in training; None for sources without one."""
        return None

    def acting_shares(
        self, noise: Float[Tensor, "b *d"], generator: torch.Generator | None
    ) -> Float[Tensor, " b"] | None:
        """The same for a policy that acts from ``noise``; the generator is asked where ``draws_while_acting``."""
        return None


@register("source", "laplace", Reference("Kotz, Kozubowski, Podgorski: The Laplace Distribution and Generalizations"))
@dataclasses.dataclass(frozen=True)
class Laplace(Source):
    """Independent Laplace entries of variance 1: heavier tails than a Gaussian, in every dimension on its own."""

    gaussian: ClassVar[bool] = False
    standard: ClassVar[bool] = False

    @property
    @override
    def law(self) -> NoiseLaw:
        return NoiseLaw("laplace")


@register("source", "normal", Reference("Flow Matching for Generative Modeling", "2210.02747"))
@dataclasses.dataclass(frozen=True)
class Normal(Source):
    """Standard Gaussian."""


@register(
    "source",
    "student-t",
    Reference("PFGM++: Unlocking the Potential of Physics-Inspired Generative Models", "2302.04265"),
)
@dataclasses.dataclass(frozen=True)
class StudentT(Source):
    """Multivariate Student-t: the kernel of PFGM++ (arXiv 2302.04265) with D = dof augmented dimensions.

    ``scale n / sqrt(chi^2 / dof)`` with n standard normal: the published beta-prime radius, in one line. Heavier
    tails train the field on a larger region. Every dimension has the deviation ``scale sqrt(dof / (dof - 2))``.
    """

    dof: Annotated[float, Range(2, above=True, infinite=True)] = 32.0
    """Degrees of freedom; at 2 and below the variance is infinite, and infinity is the Gaussian."""
    scale: Positive = 1.0
    """Scale of the law."""
    gaussian: ClassVar[bool] = False
    standard: ClassVar[bool] = False

    @property
    @override
    def law(self) -> NoiseLaw:
        return NoiseLaw(scale=self.scale, dof=None if math.isinf(self.dof) else self.dof)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Weights that depend on the squared error need a fourth moment."""
        if self.dof <= _SAFE_MOMENTS and spec.loss.robust:
            yield Conflict(
                f"{self.flag} --flow.source.dof {self.dof:g} with {spec.loss.flag}",
                "the fourth moment of the noise is infinite",
                "--flow.source.dof 32",
            )


@register("source", "mixed", Reference("MixFlow: Mixed Source Distributions Improve Rectified Flows"))
@dataclasses.dataclass(frozen=True)
class Mixed(Source):
    """Gaussian whose mean and variance move part of the way to those that a network of the observation gives (MixFlow).

    Row by row, w is uniform and the noise is ``N(w mu, w s^2 + 1 - w)``; ``beta KL(N(mu, s^2) | N(0, I))`` keeps
    it near the standard Gaussian. Unless the flow network sees w, its field transports the mixture over w, and noise
    drawn at w = 1 alone does not become a sample of the policy (measured: error 235 instead of 38).
    """

    beta: NonNegative = 0.1
    """Weight of the divergence; 0.1 and more recovers a plain flow on actions with several modes."""
    acting: Literal["zero", "uniform", "one"] = "zero"
    """w when acting: 'zero' is plain noise (as released), 'uniform' as in training, 'one' the learned law alone."""
    shown: bool = False
    """Show w to the flow network, which makes every w valid."""
    standard: ClassVar[bool] = False
    conditioned: ClassVar[bool] = True

    @property
    @override
    def inputs(self) -> int:  # type: ignore[override]
        return int(self.shown)

    @property
    @override
    def draws_while_acting(self) -> bool:
        return self.acting == "uniform"

    @override
    def shares(self, batch: int, generator: torch.Generator) -> Float[Tensor, " b"] | None:
        return torch.rand(batch, generator=generator, device=generator.device)

    @override
    def acting_shares(
        self, noise: Float[Tensor, "b *d"], generator: torch.Generator | None
    ) -> Float[Tensor, " b"] | None:
        if not self.draws_while_acting:
            return noise.new_full(noise.shape[:1], float(self.acting == "one"))
        if generator is None:
            raise ConfigError(f"the source {self.name} without a generator", fix="pass the one of act")
        return self.shares(len(noise), generator)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """The end w = 1 alone, and couplings, which would pair noise that the network has not shaped yet."""
        if self.acting == "one" and not self.shown:
            yield Conflict(
                f"{self.flag} --flow.source.acting one",
                "the field carries the mixture over w, so that noise of w = 1 alone does not become the policy",
                "--flow.source.acting zero or uniform, or --flow.source.shown",
            )
        if spec.coupling.name != "independent":
            yield Conflict(
                f"{self.flag} with {spec.coupling.flag}",
                "the coupling would pair noise before the source has shaped it",
                "--flow.coupling independent, or --flow.source normal",
            )


@register(
    "source",
    "warm-start",
    Reference("StreamDiffusionV2: A Streaming System for Dynamic and Interactive Video Generation", "2511.07399"),
)
@dataclasses.dataclass(frozen=True)
class WarmStart(Source):
    """The flow starts part of the way, from the previous chunk plus noise (StreamDiffusionV2, motion-aware controller).

    ``x = path(noise, previous chunk, start)``, and all evaluations are spent on the rest. The faster the observation
    changes, the earlier it starts: ``start = most (1 - min(1, change / motion))``. Training, and the first decision of
    an episode, start from plain noise.
    """

    most: Annotated[float, Range(0, 1, below=True)] = 0.6
    """Start time when nothing moves; 0 is plain noise."""
    motion: NonNegative = 0.0
    """Root mean square change of the scaled observation per step from which the start is plain noise; 0 ignores
    motion. Needs a history of two observations."""
    continues: ClassVar[bool] = True

    def begin(self, history: Float[Tensor, "b o n"]) -> Float[Tensor, " b"]:
        """Time of the start of every row, for scaled observation histories."""
        if not self.motion:
            return torch.full_like(history[:, 0, 0], self.most)
        if history.shape[1] < 2:
            raise ConfigError(f"{self.flag} that looks at the motion sees one observation", fix="--agent.history 2")
        change = (history[:, -1] - history[:, -2]).square().mean(1).sqrt()
        return self.most * (1 - (change / self.motion).clamp(max=1))

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """What needs the whole way from noise."""
        wrong = {
            spec.interpolant.flag: spec.interpolant.latent,
            spec.target.flag: bool(spec.target.start),
            spec.solver.flag: spec.solver.converts or spec.solver.needs_score or bool(spec.solver.belongs_to),
            spec.schedule.flag: bool(spec.schedule.belongs_to),
            spec.guidance.flag: spec.guidance.intermediate,
            spec.coupling.flag: spec.coupling.name == "table",
        }
        for flag in (flag for flag, is_wrong in wrong.items() if is_wrong):
            yield Conflict(
                f"{self.flag} with {flag}",
                "the flow starts on its way, at a time that differs from row to row",
                "--flow.source normal, or --flow.solver euler",
            )


def mix(
    noise: Float[Tensor, "b *d"],
    share: Float[Tensor, " b"],
    mean: Float[Tensor, "b *d"],
    log_variance: Float[Tensor, "b *d"],
) -> Float[Tensor, "b *d"]:
    """Noise of ``N(w mu, w s^2 + 1 - w)`` from standard noise; w is ``share``."""
    w = rows(share, noise)
    return w * mean + (w * log_variance.exp() + 1 - w).sqrt() * noise


def divergence(mean: Float[Tensor, "b *d"], log_variance: Float[Tensor, "b *d"]) -> Float[Tensor, ""]:
    """``KL(N(mu, s^2) | N(0, I))``, summed over the dimensions, mean over the rows."""
    value = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return ranks.mean(value.flatten(1).sum(1))
