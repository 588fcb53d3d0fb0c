"""Combinations that are wrong, why, and what to use instead; docs/methods/flow-laboratory.md has them in a table.

What concerns one value alone stands in its class (``conflicts``), so that a new method brings its own refusals. The
rules here concern properties that the values of several axes declare.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import Conflict

HIGH = 256
"""Size of a chunk from which on squared lengths concentrate, so that robust losses are hardly biased."""


class IncompatibleSpecError(ConfigError):
    """Values that must not be combined."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides besides the axes. The defaults say that nothing is known, and refuse nothing."""

    size: int | None = None
    """Numbers in a chunk: steps times dimensions."""
    nfe: int | None = None
    """Network evaluations per chunk while acting."""
    teacher: bool = False
    """Whether a teacher makes the pairs."""
    refiner: bool = False
    """Whether a refiner is trained beside the network."""


def conflicts(spec: FlowSpec, setting: Setting = Setting()) -> list[Conflict]:
    """Everything that is wrong with a spec."""
    found = [conflict for value in spec.values() for conflict in value.conflicts(spec, setting)]
    for rule in (_robust, _jumps, _latent, _guidance, _score):
        found += rule(spec, setting)
    return found


def validate(spec: FlowSpec, setting: Setting = Setting()) -> None:
    """Refuse what is wrong.

    Raises:
        IncompatibleSpecError: with the reason and what to use instead; the first of several, and their number.
        ConfigError: solver and guidance cannot spend ``setting.nfe`` evaluations.

    """
    found = conflicts(spec, setting)
    if found:
        first, *others = found
        more = f" (and {len(others)} more: {'; '.join(c.what for c in others)})" if others else ""
        raise IncompatibleSpecError(f"{first.what}: {first.reason}{more}", fix=f"use {first.instead}")
    if setting.nfe is not None:
        spec.sampling().grid(spec.guidance.budget(setting.nfe))


def _robust(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """A robust loss regresses a mode of a random target."""
    if not spec.loss.robust or spec.coupling.deterministic:
        return
    reason = "the target is random, and a loss that forgives large errors estimates a mode, not the mean"
    if setting.size is not None and setting.size >= HIGH:
        warnings.warn(f"{spec.loss.flag} with {spec.coupling.flag}: {reason}", stacklevel=3)
        return
    yield Conflict(
        f"{spec.loss.flag} with {spec.coupling.flag}",
        reason,
        "--flow.loss squared, or deterministic pairs first: flowpolicy distill RUN --method reflow",
    )


def _jumps(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """A solver that jumps needs a trained flow map."""
    if spec.solver.two_time and not spec.consistency.two_time:
        yield Conflict(
            f"{spec.solver.flag} with {spec.consistency.flag}",
            "jumps need a flow map, and nothing trains one",
            "--flow.consistency lsd, or --flow.solver euler",
        )


def _latent(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """The pair's velocity on a latent path is no velocity of the flow."""
    if spec.interpolant.latent and spec.consistency.two_time and not spec.consistency.own_tangent:
        yield Conflict(
            f"{spec.interpolant.flag} with {spec.consistency.flag}",
            "the derivative would follow the latent noise of the pair, not the flow",
            "--flow.interpolant linear, or --flow.consistency lsd",
        )


def _guidance(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """Guidance and solvers that do not fit each other."""
    if spec.guidance.intermediate and spec.solver.two_time and setting.nfe == 1:
        yield Conflict(
            f"{spec.guidance.flag} with {spec.solver.flag} in one evaluation",
            "there is no state between noise and chunk",
            "--agent.nfe 2, or --flow.guidance noise-opt or projection",
        )
    if spec.guidance.repeatable and spec.solver.stochastic:
        yield Conflict(
            f"{spec.guidance.flag} with {spec.solver.flag}",
            "the same noise does not give the same chunk twice",
            "--flow.solver euler",
        )
    if spec.guidance.null and spec.solver.two_time:
        yield Conflict(
            f"{spec.guidance.flag} with {spec.solver.flag}",
            "a mean velocity is not linear in the guidance",
            "--flow.solver euler, or --flow.guidance none",
        )


def _score(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """A velocity gives the score for standard Gaussian noise only."""
    if spec.solver.needs_score and not spec.source.standard:
        yield Conflict(
            f"{spec.solver.flag} with {spec.source.flag}",
            "the score follows from the velocity for standard Gaussian noise only",
            "--flow.source normal, or --flow.solver euler",
        )
