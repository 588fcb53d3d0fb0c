"""Combinations that are wrong, why, and what to use instead: the table R1 to R25 of [flow-methods 2.2].

What concerns one value alone stands in its class (``conflicts``), so that a new method brings its own refusals. The
rules here concern properties of several values, which a new method declares. R4 (weights and another coupling) cannot
be written down: an axis has one value.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Literal

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Conflict
from flowpolicy.flows.axes.spec import FlowSpec

HIGH = 256
"""Size of a chunk from which on squared lengths concentrate and robust losses hardly bias."""
SCORE_POSTS = ("fisher", "rtb", "qam", "reinflow")
GROUP_POSTS = ("gdro", "dgpo", "awr", "rtb")
ACTOR_POSTS = ("fql", "fisher", "gdro", "dgpo", "awr", "qam", "rtb", "reinflow", "map-q", "backward-sim")


class IncompatibleSpecError(ConfigError):
    """Values that must not be combined."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides besides the axes. None and the defaults say that nothing is known, and refuse nothing."""

    size: int | None = None
    """Numbers in a chunk: steps times dimensions."""
    nfe: int | None = None
    """Evaluations per chunk while acting."""
    conditional: bool = True
    """Whether there are observations."""
    teacher: bool = False
    """Whether a teacher makes the pairs."""
    refiner: bool = False
    """Whether a refiner stands beside the network."""
    network: Literal["", "velocity", "map"] = ""
    """Kind of a network that is there already."""
    smooth: bool = True
    """Whether its activations have a derivative everywhere."""
    dropout: float = 0.0
    """Its dropout."""
    batch_norm: bool = False
    """Whether it normalises over the batch."""
    fused_attention: bool = False
    """Whether it has a kernel without forward derivatives."""
    endpoint_only: bool = False
    """Whether it was distilled at t = 0 alone and has no velocity elsewhere."""
    posts: tuple[str, ...] = ()
    """Post-training objectives of one stage."""
    group: int | None = None
    """Candidates per observation of a group objective."""
    serving: Literal["sync", "stream-batch", "deadline"] = "sync"
    """How chunks are asked for."""
    delay: int = 0
    """Steps that pass before a chunk arrives."""
    chunk: int | None = None
    """Steps of a chunk."""
    execute: int | None = None
    """Steps of it that are executed."""
    weights: str = ""
    """Hash of the weights that act."""
    previous_chunk: bool = False
    """Whether the noise depends on the chunk before."""
    clipped_pairs: bool = False
    """Whether a teacher's chunks were clamped before they were stored."""
    foreign_normalizer: bool = False
    """Whether the teacher's chunks have another normaliser."""


def conflicts(spec: FlowSpec, setting: Setting = Setting()) -> list[Conflict]:
    """Everything that is wrong with a spec."""
    found = [conflict for value in spec.values() for conflict in value.conflicts(spec, setting)]
    for rule in (_robust, _networks, _latent, _derivatives, _guidance, _score, _posts, _serving, _pairs, _fits):
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
    """R3."""
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


def _networks(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R5."""
    if spec.consistency.two_time and setting.network == "velocity":
        yield Conflict(f"{spec.consistency.flag} with a velocity network", "it trains u(x, s, t)", "a MapNet")
    if spec.solver.two_time and not spec.consistency.two_time:
        yield Conflict(
            f"{spec.solver.flag} with {spec.consistency.flag}",
            "jumps need a flow map, and nothing trains one",
            "--flow.consistency lsd, or --flow.solver euler",
        )


def _latent(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R6."""
    if spec.interpolant.latent and spec.consistency.two_time and not spec.consistency.own_tangent:
        yield Conflict(
            f"{spec.interpolant.flag} with {spec.consistency.flag}",
            "the derivative would follow the latent noise of the pair, not the flow",
            "--flow.interpolant linear, or --flow.consistency lsd",
        )


def _derivatives(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R7."""
    bad = {
        "dropout": setting.dropout > 0,
        "batch normalisation": setting.batch_norm,
        "an activation with kinks": not setting.smooth,
        "fused attention": setting.fused_attention,
    }
    named = [name for name, present in bad.items() if present]
    if spec.consistency.forward_mode and named:
        yield Conflict(
            f"{spec.consistency.flag} with {' and '.join(named)}",
            "forward derivatives through it are wrong or missing",
            "--flow.consistency central-difference, or a smooth network without dropout",
        )


def _guidance(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R8 and R16."""
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
    """R9 and R10."""
    asking = [post for post in setting.posts if post in SCORE_POSTS]
    asking = [spec.solver.flag, *asking] if spec.solver.needs_score else asking
    if asking and not spec.source.standard:
        yield Conflict(
            f"{' and '.join(asking)} with {spec.source.flag}",
            "the score follows from the velocity for standard Gaussian noise only",
            "--flow.source normal, or --flow.solver euler",
        )
    if asking and setting.endpoint_only:
        yield Conflict(
            f"{' and '.join(asking)} on a network that was distilled at t = 0",
            "without a velocity there is no score and no density per step",
            "the flow that it was distilled from, or the diagonal of a flow map",
        )


def _posts(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R11, R19 and R20."""
    groups = [post for post in setting.posts if post in GROUP_POSTS]
    if groups and setting.endpoint_only:
        yield Conflict(
            f"{' and '.join(groups)} on a network that was distilled at t = 0",
            "its implicit reward is a loss of the velocity",
            "a flow map or a velocity network",
        )
    if setting.group is not None and setting.group < 2:
        yield Conflict(f"groups of {setting.group}", "one candidate cannot be ranked", "groups of 8")
    owners = [post for post in setting.posts if post in ACTOR_POSTS]
    if len(owners) > 1:
        yield Conflict(
            f"{' and '.join(owners)} in one stage",
            "each of them is the objective of the actor",
            "one stage after the other",
        )


def _serving(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R15 and R18."""
    if setting.serving == "stream-batch" and setting.nfe == 1:
        yield Conflict(
            f"stream batches with {spec.solver.flag} in one evaluation",
            "there is nothing to pipeline",
            "--flow.solver euler",
        )
    if setting.serving == "deadline" and spec.solver.belongs_to:
        yield Conflict(
            f"deadlines with {spec.solver.flag}",
            "a fitted solver has one number of evaluations",
            "a fit for each of several numbers, or --flow.solver ab2",
        )
    if setting.execute is not None and setting.execute < setting.delay:
        yield Conflict(
            f"a delay of {setting.delay} with {setting.execute} executed steps",
            "the chunk is used up before the next arrives",
            "a smaller delay, or a longer chunk",
        )
    if setting.chunk is not None and setting.delay > setting.chunk - 1:
        yield Conflict(
            f"a delay of {setting.delay} with chunks of {setting.chunk}",
            "nothing of the chunk is free",
            "longer chunks",
        )


def _pairs(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R17 and R21."""
    if not spec.coupling.deterministic:
        return
    if setting.previous_chunk:
        yield Conflict(
            f"{spec.coupling.flag} with noise that depends on the chunk before",
            "the noise cannot be made again",
            "pairs that store the chunk before",
        )
    if setting.clipped_pairs or setting.foreign_normalizer:
        bad = "clamped chunks" if setting.clipped_pairs else "the pairs of another normaliser"
        yield Conflict(
            f"{spec.coupling.flag} with {bad}",
            "the targets are biased",
            "pairs made anew: flowpolicy distill RUN --method reflow",
        )


def _fits(spec: FlowSpec, setting: Setting) -> Iterator[Conflict]:
    """R14."""
    fitted = spec.sampling().belongs_to
    if fitted and setting.weights and fitted != setting.weights:
        yield Conflict(
            f"{spec.solver.flag} of the weights {fitted[:12]} on the weights {setting.weights[:12]}",
            "coefficients belong to the field that they were fitted to",
            "flowpolicy fit RUN",
        )
