"""The coupling axis: which noise is paired with which chunk.

Any coupling that looks at the chunk and not at the observation makes the noise of an observation depend on its chunks;
the policy, which starts from all noise, is then wrong even with infinitely many steps (measured: error 211, not 31).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import TrainingError
from flowpolicy.core.ranges import Count, Few, NonNegative, Positive, Range, Share
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register
from flowpolicy.flows.transport import assignment, weight_for_share

Draw = Callable[[], Tensor]
"""Fresh noise of the shape of a batch."""

_FEW_CANDIDATES, _LARGE = 4, 32
_LEAST_EFFECTIVE = 0.5
_LEAST_EXCHANGED = 0.01


class Pairing(NamedTuple):
    """Noise for the rows of a batch, and their weights in the loss."""

    noise: Float[Tensor, "b *d"]
    weight: Float[Tensor, " b"] | None = None
    """Mean 1; None where all rows weigh the same."""


@dataclasses.dataclass(frozen=True)
class Coupling(Value):
    """Base of the couplings."""

    deterministic: ClassVar[bool] = False
    """Whether the chunk is a function of noise and observation."""
    waits: ClassVar[str] = ""
    """Why every update on a GPU waits for the processor; empty where none does."""

    @property
    def settles(self) -> float:
        """Share of the updates from which on the pairs no longer depend on it."""
        return 0.0

    def pair(
        self,
        draw: Draw,
        data: Float[Tensor, "b *d"],
        cond: Float[Tensor, "b c"],
        progress: float,
    ) -> Pairing:
        """Noise for every row.

        Args:
            draw: gives fresh noise.
            data: normalised chunks.
            cond: normalised observations.
            progress: share of the planned updates that is done, in [0, 1].

        """
        raise NotImplementedError


@register("coupling", "independent", Reference("Flow Matching for Generative Modeling", "2210.02747"))
@dataclasses.dataclass(frozen=True)
class Independent(Coupling):
    """Noise drawn apart from the data."""

    @override
    def pair(self, draw: Draw, data: Float[Tensor, "b *d"], cond: Float[Tensor, "b c"], progress: float) -> Pairing:
        return Pairing(draw())


@register(
    "coupling",
    "knn",
    Reference("Improved Immiscible Diffusion: Accelerate Diffusion Training by Reducing Its Miscibility", "2505.18521"),
)
@dataclasses.dataclass(frozen=True)
class Nearest(Coupling):
    """At first, the nearest of k draws of noise (Improved Immiscible Diffusion); later, independent noise.

    Pairing skews the noise given the observation, so it is only a warm-up: after the share ``until`` of the updates the
    pairs are independent.
    """

    candidates: Few = 4
    """Draws per chunk; 1 is the independent coupling, bit for bit."""
    until: Share = 0.3
    """Share of the updates with pairing; 1 never stops."""

    @property
    @override
    def settles(self) -> float:
        return self.until if self.candidates > 1 else 0.0

    @override
    def pair(self, draw: Draw, data: Float[Tensor, "b *d"], cond: Float[Tensor, "b c"], progress: float) -> Pairing:
        first = draw()
        if self.candidates == 1 or progress >= self.until:
            return Pairing(first)
        noise = torch.stack([first, *(draw() for _ in range(self.candidates - 1))])
        nearest = (noise - data).square().flatten(2).sum(2).argmin(0)
        return Pairing(noise[nearest, torch.arange(len(data), device=data.device)])

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Many candidates, or few dimensions, for the whole training skew the noise for good."""
        small = setting.size is not None and setting.size < _LARGE
        if self.until == 1 and self.candidates > 1 and (self.candidates > _FEW_CANDIDATES or small):
            where = f" of size {setting.size}" if small else ""
            yield Conflict(
                f"{self.flag} --flow.coupling.candidates {self.candidates} --flow.coupling.until 1 on chunks{where}",
                "noise near the chunk is not noise: the policy never sees that law",
                "--flow.coupling.until 0.3",
            )


@register(
    "coupling",
    "c2ot",
    Reference(
        "The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional Flow-Based Generation",
        "2503.10636",
    ),
)
@dataclasses.dataclass(frozen=True)
class ConditionalTransport(Coupling):
    """Optimal assignment of noise to chunks where observations count too (C2OT, arXiv 2503.10636).

    Cost ``|noise_i - data_j|^2 + weight |cond_i - cond_j|^2`` on observations standardised over the batch. The typical
    ``|cond_i - cond_j|^2`` is twice the number of dimensions, and in many dimensions all distances are much alike: a
    fixed weight that suits two dimensions exchanges nothing on twenty (a warning says so). So ``share`` finds the
    weight unless it is given. At the default share, observations that exchange their noise have less than a third of
    the mean squared distance of random ones (measured on 1 to 100 independent dimensions). Judge the coupling by the
    error at many evaluations: it must not rise above that of independent pairs, as it does on the chunk toy at the
    default share (docs/lab.md). Lower shares exchange less noise, and between nearer observations.
    """

    weight: NonNegative | None = None
    """Price of exchanging noise between observations, above 0; None finds it by ``share``."""
    share: Annotated[float, Range(0, 1, below=True)] = 0.15
    """The weight is chosen so that this share of all exchanges costs less than the pairs as drawn."""
    waits: ClassVar[str] = "the assignment of its pairs is solved on the processor"
    block: Count = 128
    """Rows assigned among themselves; the time grows with its square."""

    @override
    def pair(self, draw: Draw, data: Float[Tensor, "b *d"], cond: Float[Tensor, "b c"], progress: float) -> Pairing:
        noise = draw()
        scaled = (cond - cond.mean(0)) / cond.std(0, correction=0).clamp(min=1e-6)
        # The assignment is the processor's: one copy there and one back, instead of a stop per question.
        here = (value.cpu().split(self.block) for value in (noise, data, scaled))
        moved = [part[assignment(self.cost(part, a, c))] for part, a, c in zip(*here, strict=True)]
        paired = torch.cat(moved)
        noise = noise.cpu()
        exchanged = float((paired != noise).flatten(1).any(1).float().mean())
        if len(noise) >= _LARGE and exchanged < _LEAST_EXCHANGED:
            warnings.warn(
                f"{self.flag} exchanged the noise of {100 * exchanged:.1f} % of a batch of {len(noise)}: these are "
                f"independent pairs (observations of {scaled.shape[1]} numbers, weight {self.weight}, share "
                f"{self.share}, blocks of {self.block}). Leave the weight out, raise --flow.coupling.share, or use "
                "larger batches",
                stacklevel=2,
            )
        return Pairing(paired.to(data.device))

    def cost(
        self, noise: Float[Tensor, "b *d"], data: Float[Tensor, "b *d"], cond: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b b"]:
        """Cost of giving the noise of column j to the chunk of row i."""
        near = torch.cdist(data.flatten(1), noise.flatten(1)).square()
        apart = torch.cdist(cond, cond).square()
        weight = weight_for_share(near, apart, self.share) if self.weight is None else self.weight
        return near + weight * apart

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Plain optimal transport (arXiv 2302.00482) suits flows without a condition only, and a policy has one."""
        if self.weight == 0:
            yield Conflict(
                f"{self.flag} --flow.coupling.weight 0 with a policy, which is conditional",
                "pairing by the chunks alone makes the noise depend on the chunk given the observation",
                "--flow.coupling.weight 10, or leave it out",
            )


@register("coupling", "gibbs", Reference("Weighted Conditional Flow Matching", "2507.22270"))
@dataclasses.dataclass(frozen=True)
class Gibbs(Coupling):
    """Independent pairs weighed by ``exp(-|noise - data|^2 / (2 d temperature))`` (Weighted Conditional Flow Matching).

    Entropic transport without the potentials: the laws of noise and data are tilted, less so at higher temperatures.
    The weights are divided by their mean over the batch.
    """

    waits: ClassVar[str] = "what its weights are worth is read after every draw"
    temperature: Positive = 1.5
    """The epsilon; 1 to 2 helped at every number of evaluations, 0.25 was biased (measured)."""

    def pair(self, draw: Draw, data: Float[Tensor, "b *d"], cond: Float[Tensor, "b c"], progress: float) -> Pairing:
        """Fresh noise with the weights of the pairs.

        Raises:
            TrainingError: the weights are worth less than half of the batch.

        """
        noise = draw()
        weight = (-(noise - data).square().flatten(1).mean(1) / (2 * self.temperature)).softmax(0) * len(data)
        effective = float(1 / weight.square().mean())
        if effective < _LEAST_EFFECTIVE:
            raise TrainingError(
                f"the weights of {self.flag} are worth {100 * effective:.0f} % of the batch",
                expected=f"at least {100 * _LEAST_EFFECTIVE:.0f} %",
                fix=f"--flow.coupling.temperature {4 * self.temperature:g}",
            )
        return Pairing(noise, weight)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Targets that the network makes itself are no pairs that could be weighed."""
        if spec.consistency.two_time:
            yield Conflict(
                f"{self.flag} with {spec.consistency.flag}",
                "the weights belong to pairs of noise and data, the target off the diagonal to the network",
                "--flow.coupling independent or c2ot",
            )


@register(
    "coupling",
    "table",
    Reference("Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", "2209.03003"),
    Reference("SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow", "2407.12718"),
    Reference("Improving the Training of Rectified Flows", "2405.20320"),
)
@dataclasses.dataclass(frozen=True)
class Table(Coupling):
    """Pairs made by a teacher: the chunk is where its flow carries the noise (reflow, arXiv 2209.03003).

    A student with random initial weights learns more easily if its noise starts fresh and gradually turns into that of
    the pair (annealing reflow; SlimFlow, arXiv 2407.12718): ``sqrt(1 - b^2) noise + b fresh``.
    """

    anneal: Share = 0.0
    """Share of the updates over which b falls from 1 to 0; 0 keeps the pairs as they are."""
    real: Share = 0.0
    """Share of the rows whose chunk is real and whose noise is found by inversion (arXiv 2405.20320, section 4.4)."""
    inversion: Literal["afp", "midpoint", "exact"] = "afp"
    """How the teacher's flow is inverted; see :meth:`flowpolicy.agents.students.teacher.Teacher.invert`."""
    deterministic: ClassVar[bool] = True

    @property
    @override
    def settles(self) -> float:
        return self.anneal

    def blend(self, noise: Float[Tensor, "b *d"], progress: float, generator: torch.Generator) -> Float[Tensor, "b *d"]:
        """The student's noise for the teacher's."""
        if progress >= self.anneal:
            return noise
        b = 1 - progress / self.anneal
        fresh = torch.randn(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)
        return float((1 - b * b) ** 0.5) * noise + b * fresh

    def pair(self, draw: Draw, data: Float[Tensor, "b *d"], cond: Float[Tensor, "b c"], progress: float) -> Pairing:
        """The noise alone: the agent asks the teacher for the chunks."""
        return Pairing(draw())

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Without a teacher there are no pairs."""
        if not setting.teacher:
            yield Conflict(
                f"{self.flag} without a teacher",
                "its pairs are made by a trained policy",
                "flowpolicy distill RUN --method reflow",
            )
