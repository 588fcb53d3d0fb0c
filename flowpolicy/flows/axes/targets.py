"""The target axis: what the network predicts. Errors are weighted to be errors of the velocity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.ranges import Few, Inside, NonNegative, Positive
from flowpolicy.flows.axes.interpolants import PRINCIPLES, Interpolant
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register
from flowpolicy.flows.straight import rows

ARCFLOW = Reference(
    "ArcFlow: Unleashing 2-Step Text-to-Image Generation via High-Precision Non-Linear Flow Distillation", "2602.09014"
)
_SAMPLING_FLOOR = 1e-3


class Drawn(NamedTuple):
    """Points of a path, as they were drawn."""

    noise: Float[Tensor, "b *d"]
    data: Float[Tensor, "b *d"]
    z: Float[Tensor, "b *d"] | None
    """Noise of a latent path."""
    t: Float[Tensor, " b"]
    path: Interpolant


@dataclasses.dataclass(frozen=True)
class Target(Value):
    """Base of the prediction targets."""

    converts: ClassVar[bool] = True
    """Whether its velocity follows from the data or the noise that it predicts."""
    integrates: ClassVar[bool] = False
    """Whether a prediction is a whole curve, which needs no solver; then ``mean`` and ``errors`` say what it is."""

    def outputs(self, action: int) -> int:
        """Numbers that the network gives for an action of so many."""
        return action

    def mean(
        self, prediction: Float[Tensor, "b h o"], s: Float[Tensor, " b"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b h a"]:
        """Mean velocity from s to t of a prediction at s."""
        raise NotImplementedError

    def errors(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        x: Float[Tensor, "b h a"],
        velocity: Float[Tensor, "b h a"],
        s: Float[Tensor, " b"],
        t: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b h a"]]:
        """Errors at s and on the curve at t, in units of the velocity; ``predict`` is the network at (x, time)."""
        raise NotImplementedError

    @property
    def start(self) -> float:
        """Time at which sampling starts; above 0 where the prediction says nothing about the data at 0."""
        return 0.0

    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        """Velocity of a prediction of the network, for sampling."""
        raise NotImplementedError

    def error(self, prediction: Float[Tensor, "b *d"], at: Drawn) -> Float[Tensor, "b *d"]:
        """Error of a prediction in units of the velocity."""
        raise NotImplementedError


@register("target", "velocity", Reference("Flow Matching for Generative Modeling", "2210.02747"))
@dataclasses.dataclass(frozen=True)
class Velocity(Target):
    """The time derivative of the path (Lipman et al. 2023, arXiv 2210.02747)."""

    converts: ClassVar[bool] = False

    @override
    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        return prediction

    @override
    def error(self, prediction: Float[Tensor, "b *d"], at: Drawn) -> Float[Tensor, "b *d"]:
        return prediction - at.path.velocity(at.noise, at.data, at.t, at.z)


@register(
    "target",
    "data",
    Reference("RiT: Vanilla Diffusion Transformers Suffice in Representation Space", "2605.21981"),
    PRINCIPLES,
)
@dataclasses.dataclass(frozen=True)
class Data(Target):
    """The chunk itself, with the loss of the velocity (RiT): squared errors weigh ``1 / (1 - t)^2``."""

    floor: float = 0.05
    """Smallest deviation of the noise that the weight divides by in training: near the data it would explode."""

    @override
    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        return path.from_data(x, prediction, t, _SAMPLING_FLOOR)

    @override
    def error(self, prediction: Float[Tensor, "b *d"], at: Drawn) -> Float[Tensor, "b *d"]:
        e = at.path.effective(at.t, at.data)
        return (prediction - at.data) * e.wronskian / e.sigma.clamp(min=self.floor)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Without a floor the weight is infinite at the data."""
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
    @override
    def start(self) -> float:
        return self.floor

    @override
    def velocity(
        self, prediction: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        return path.from_noise(x, prediction, t, _SAMPLING_FLOOR)

    @override
    def error(self, prediction: Float[Tensor, "b *d"], at: Drawn) -> Float[Tensor, "b *d"]:
        e = at.path.effective(at.t, at.data)
        nothing = at.path.point(at.noise, 0 * at.data, at.t, at.z)
        whole = nothing / e.sigma.clamp(min=1e-6) if at.path.latent else at.noise
        return (prediction - whole) * e.wronskian / e.beta.clamp(min=self.floor)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """No floor, or no second evaluation."""
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


class Curve(NamedTuple):
    """Velocity of a segment, ``sum_k weight_k mode_k exp(rate_k tau)`` at the time tau after its start."""

    weight: Float[Tensor, "b h k 1"]
    mode: Float[Tensor, "b h k a"]
    rate: Float[Tensor, "b h k 1"]

    def mean(self, since: Float[Tensor, " b"], length: Float[Tensor, " b"]) -> Float[Tensor, "b h a"]:
        """Mean velocity from ``since`` to ``since + length`` after the start, in closed form; length 0 is one time."""
        growth = (self.rate * rows(since, self.rate)).exp() * _phi(self.rate * rows(length, self.rate))
        return (self.weight * growth * self.mode).sum(2)

    def without(self, dropped: Bool[Tensor, "b k"]) -> Curve:
        """The curve without some modes, the weights of the others rescaled; a row that would lose all keeps all."""
        kept = ~dropped | dropped.all(1, keepdim=True)
        weight = self.weight * kept[:, None, :, None]
        return self._replace(weight=weight / weight.sum(2, keepdim=True))


def _phi(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``, and its series near 0."""
    small = z.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 + z.square() / 6, torch.expm1(safe) / safe)


@register("target", "segment", ARCFLOW)
@dataclasses.dataclass(frozen=True)
class Segment(Velocity):
    """Modes whose momentum decays or grows: one evaluation gives the velocity of a whole segment (ArcFlow).

    Every step of the chunk has K modes, K weights that sum to 1 and K rates of which the first is 0. At the start of a
    segment the velocity is that of flow matching. Later, the curve is regressed on the network's own velocity,
    detached, at the point that the curve leads to: ArcFlow's distillation with the network as its own teacher.
    """

    modes: Few = 4
    """The K; 1 is a constant velocity."""
    limit: NonNegative = 8.0
    """Largest rate."""
    window: Inside = 3 / 128
    """Length over which the curve is averaged where it is compared (ArcFlow)."""
    clamp: Positive = 3.0
    """Points that the curve leads to are clamped to +- this before the network is asked for its velocity there."""
    integrates: ClassVar[bool] = True

    @override
    def outputs(self, action: int) -> int:
        return self.modes * action + 2 * self.modes - 1

    def curve(self, prediction: Float[Tensor, "b h o"]) -> Curve:
        """The curve of a segment that the network predicts.

        Rates start out different, at 0, 2, -2, 4, ... plus what is learned: equal modes would stay equal.
        """
        k = self.modes
        index = torch.arange(k - 1, device=prediction.device)
        apart = 2 * (index // 2 + 1) * (1 - 2 * (index % 2))
        mode, logit, raw = prediction.tensor_split([prediction.shape[2] - 2 * k + 1, prediction.shape[2] - k + 1], 2)
        rate = torch.cat(
            [torch.zeros_like(logit[..., :1]), self.limit * (raw + apart / max(self.limit, 1e-6)).tanh()], dim=2
        )
        return Curve(logit.softmax(2).unsqueeze(3), mode.unflatten(2, (k, -1)), rate.unsqueeze(3))

    def velocity(
        self, prediction: Float[Tensor, "b h o"], x: Float[Tensor, "b h a"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b h a"]:
        """Velocity at the start of the segment."""
        return self.curve(prediction).mean(torch.zeros_like(t), torch.zeros_like(t))

    @override
    def mean(
        self, prediction: Float[Tensor, "b h o"], s: Float[Tensor, " b"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b h a"]:
        return self.curve(prediction).mean(torch.zeros_like(s), t - s)

    @override
    def errors(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        x: Float[Tensor, "b h a"],
        velocity: Float[Tensor, "b h a"],
        s: Float[Tensor, " b"],
        t: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b h a"]]:
        curve = self.curve(predict(x, s))
        zero, window = torch.zeros_like(s), torch.full_like(s, self.window)
        ahead = (t.clamp(max=1 - self.window) - s).clamp(min=0)
        with torch.no_grad():
            point = (x + rows(ahead, x) * curve.mean(zero, ahead)).clamp(-self.clamp, self.clamp)
            teacher = self.curve(predict(point, s + ahead)).mean(zero, zero)
        return curve.mean(zero, zero) - velocity, curve.mean(ahead, window) - teacher

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """A curve integrates itself."""
        if spec.solver.name != "self":
            yield Conflict(f"{self.flag} with {spec.solver.flag}", "it integrates itself", "--flow.solver self")
        if spec.consistency.two_time:
            yield Conflict(
                f"{self.flag} with {spec.consistency.flag}",
                "its curve is a flow map already, trained by following its own velocity",
                "--flow.consistency none",
            )
        if spec.guidance.null or spec.guidance.hides:
            yield Conflict(
                f"{self.flag} with {spec.guidance.flag}",
                "curves of several conditions do not add up to that of their mixture",
                "--flow.guidance none, or --flow.target velocity",
            )
