"""What students of a flow are trained on, besides the pairs of reflow (docs/methods/flow-laboratory.md#students).

Everything here ends as a straight line, a pair of noise and data: whatever learns velocities by matching learns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flowpolicy.flows.straight import Field, MeanField, rows, velocity_to_data


class Line(NamedTuple):
    """The straight path from ``noise`` at 0 to ``data`` at 1."""

    noise: Float[Tensor, "b *d"]
    data: Float[Tensor, "b *d"]


def line_through(x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], slope: Float[Tensor, "b *d"]) -> Line:
    """The line that is at x at the time t and has the velocity ``slope``."""
    time = rows(t, x)
    return Line(x - time * slope, x + (1 - time) * slope)


def segment_lines(states: Float[Tensor, "k b *d"], nodes: Float[Tensor, " k"], segment: Int64[Tensor, " b"]) -> Line:
    """The chord of one segment per row, prolonged to 0 and 1 (BOSS, arXiv 2312.16414, section 3.3).

    Args:
        states: of the teacher's trajectories at the nodes.
        nodes: rising times.
        segment: which of the k - 1 segments, for every row.

    """
    row = torch.arange(states.shape[1], device=states.device)
    start, end = states[segment, row], states[segment + 1, row]
    slope = (end - start) / rows(nodes[segment + 1] - nodes[segment], start)
    return line_through(start, nodes[segment], slope)


def guided_line(
    noise: Float[Tensor, "b *d"], first: Float[Tensor, "b *d"], guide: Field, t: Float[Tensor, " b"]
) -> Line:
    """What a one-step student should do with fresh noise: its own step as far as t, and from there the guide's.

    ``x_t = noise + t v(noise, 0)``, ``data = x_t + (1 - t) v_guide(x_t, t)`` (SlimFlow, arXiv 2407.12718, section 3.2).
    Exact for every t where the guide's paths are straight, which is why the guide should be a rectified flow.

    Args:
        noise: fresh noise.
        first: the student's velocity at the noise; without a gradient.
        guide: velocity of the guide.
        t: times in (0, 1).

    """
    middle = noise + rows(t, noise) * first
    return Line(noise, velocity_to_data(middle, guide(middle, t), t))


class Rollout(NamedTuple):
    """A trajectory of a flow map: one jump to s, the step from s to t that is trained, one jump to the data."""

    start: Float[Tensor, "b *d"]
    """State at s."""
    data: Float[Tensor, "b *d"]
    """Where it ends."""


def step_of(count: Int64[Tensor, " b"], u: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The ends of one of ``count`` equal steps, u in [0, 1) says which."""
    index = (u * count).floor()
    return index / count, (index + 1) / count


def backward_simulation(
    mean: MeanField, noise: Float[Tensor, "b *d"], s: Float[Tensor, " b"], t: Float[Tensor, " b"]
) -> Rollout:
    """What a flow map makes of noise if one step, from s to t, is looked at alone (AnyFlow, code ``training_rollout``).

    Memory and time do not grow with the number of steps, and an exact map ends where any other path of it does.
    """
    zero, one = torch.zeros_like(s), torch.ones_like(t)
    start = noise + rows(s, noise) * mean(noise, zero, s)
    return Rollout(start, last_steps(mean, start, s, t, one))


def last_steps(
    mean: MeanField, x: Float[Tensor, "b *d"], s: Float[Tensor, " b"], t: Float[Tensor, " b"], end: Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """The step from s to t and the jump from t to ``end``; no jump where t is the end."""
    x = x + rows(t - s, x) * mean(x, s, t)
    return x + rows(end - t, x) * mean(x, t, end)


def matching_gradient(
    data: Float[Tensor, "b *d"],
    noise: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    fake: Callable[[Tensor, Tensor], Tensor],
    real: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "b *d"]:
    """Direction that raises the divergence of samples from the real law: fake minus real denoised samples.

    Divided by the mean distance between samples and real denoised ones, row by row, as released (distribution matching
    distillation, arXiv 2311.18828, section 3.2; AnyFlow). Zero in the mean where both velocities are those of the
    samples' law.

    Args:
        data: samples of the student.
        noise: fresh noise that they are mixed with.
        t: times in [0, 1) to mix at.
        fake: velocity of the samples' own flow.
        real: velocity of the flow that they should follow.

    """
    time = rows(t, data)
    x = (1 - time) * noise + time * data
    wanted = velocity_to_data(x, real(x, t), t)
    distance = (data - wanted).flatten(1).abs().mean(1).clamp(min=1e-6)
    return (velocity_to_data(x, fake(x, t), t) - wanted) / rows(distance, data)
