"""How an actor of the flow laboratory shapes noise and generates chunks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.guidance import Situation
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.axes.sources import divergence, mix
from flowpolicy.flows.axes.spec import Network, Sampling
from flowpolicy.policy.previous import Previous

if TYPE_CHECKING:
    from flowpolicy.policy.actor import Actor
    from flowpolicy.policy.policy import Policy

_M = TypeVar("_M", bound=Callable[..., Any])


def without_gradients(method: _M) -> _M:
    """Inference mode, or only no gradients where the policy differentiates its network while acting."""

    @functools.wraps(method)
    def run(self: Policy, *args: Any, **kwargs: Any) -> Any:
        flow = self.config.flow
        with torch.no_grad() if flow and flow.guidance.differentiates else torch.inference_mode():
            return method(self, *args, **kwargs)

    return cast(_M, run)


def shaped(
    actor: Actor, noise: Float[Tensor, "b h a"], cond: Float[Tensor, "b c"], share: Float[Tensor, " b"] | None
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, ""] | None]:
    """Noise of a source that the observation moves by ``share``, and its divergence from N(0, I).

    Noise of all other sources stays as it is.
    """
    if actor.source is None or share is None:
        return noise, None
    mean, log_variance = actor.source(cond)
    return mix(noise, share, mean, log_variance), divergence(mean, log_variance)


def seen(flow: Sampling, cond: Float[Tensor, "b c"], share: Float[Tensor, " b"] | None) -> Float[Tensor, "b e"]:
    """The condition of the network: that of the encoder, and what the source shows."""
    return torch.cat([cond, share.unsqueeze(1)], dim=1) if share is not None and flow.source.inputs else cond


def generate(
    policy: Policy,
    flat: Float[Tensor, "b n"],
    noise: Float[Tensor, "bk h a"],
    nfe: int,
    generator: torch.Generator | None,
    previous: Previous | None = None,
) -> Float[Tensor, "b h a"]:
    """The chunk that a policy of the flow laboratory acts on, scaled and within [-1, 1].

    Args:
        policy: its networks, normaliser and sampling.
        flat: flat observation histories, scaled.
        noise: from the source, before anything has moved it; the k candidates of a row follow each other.
        nfe: evaluations of the network, over everything that the guidance asks for.
        generator: what solvers and sources draw from beside the noise.
        previous: what was done before; None in the first decision of an episode.

    """
    guidance = policy.config.flow.guidance  # type: ignore[union-attr]
    candidates = noise.shape[0] // flat.shape[0]
    if candidates != guidance.candidates:
        raise ConfigError(
            f"noise for {candidates} chunks per decision with {guidance.flag}", expected=f"{guidance.candidates}"
        )
    carrying = _Carrying(policy, flat, candidates, guidance.budget(nfe), generator, previous)
    noise = carrying.begin(noise)
    noise = guidance.start(noise, carrying.finish, carrying.situation(noise))
    # Only finished chunks are clamped: half-way states are no actions, and clamping them spoils several steps.
    chunks = policy.normalizer.within(carrying.finish(noise))
    finished = guidance.finish(chunks.view(-1, candidates, *chunks.shape[1:]), carrying.situation(noise))
    return policy.normalizer.within(finished)  # a goal moves no dimension that never varied in the data


def carry(
    policy: Policy, flat: Float[Tensor, "b n"], noise: Float[Tensor, "b h a"], nfe: int
) -> Float[Tensor, "b h a"]:
    """Where the guided flow carries the noise in ``nfe`` evaluations, not clamped, nothing chosen or projected."""
    policy.require_no_memory()
    guidance = policy.config.flow.guidance  # type: ignore[union-attr]
    carrying = _Carrying(policy, flat, 1, guidance.budget(guidance.repeats * nfe), None, None)
    return carrying.finish(carrying.begin(noise))


class _Carrying:
    """One decision of one policy."""

    def __init__(
        self,
        policy: Policy,
        flat: Tensor,
        candidates: int,
        evaluations: int,
        generator: torch.Generator | None,
        previous: Previous | None,
    ) -> None:
        flow = cast(Sampling, policy.config.flow)
        self.policy, self.flow, self.evaluations, self.generator = policy, flow, evaluations, generator
        self.flat = flat.repeat_interleave(candidates, 0) if candidates > 1 else flat
        self.cond: Tensor = policy.actor.encoder(self.flat).cond
        self.network = policy.counted(policy.actor.net, candidates)
        refiner = policy.actor.refiner
        self.refiner = policy.counted(refiner, candidates) if refiner else None
        self.share: Tensor | None = None
        if flow.source.conditioned:
            if generator is None:
                raise ConfigError(f"the source {flow.source.name} without a generator", fix="pass the one of act")
            self.share = flow.source.shares(len(self.flat), generator, acting=True)
        self.past = self.planned = self.begun = None
        if previous is not None:
            past = policy.normalizer.action(previous.executed).masked_fill(~previous.known.unsqueeze(2), 0.0)
            planned = policy.normalizer.within(policy.normalizer.action(previous.planned))
            self.past, self.planned, self.begun = (
                part.repeat_interleave(candidates, 0) for part in (past, planned, previous.begun)
            )

    def begin(self, noise: Tensor) -> Tensor:
        """The point at t = 0."""
        noise, _ = shaped(self.policy.actor, noise, self.cond, self.share)
        return self.flow.interpolant.begin(noise, torch.zeros_like(noise) if self.past is None else self.past)

    def situation(self, noise: Tensor) -> Situation:
        """What guidance may know."""
        scaling = self.policy.normalizer.action_scaling
        return Situation(
            path=self.flow.interpolant,
            grid=self.flow.grid(self.evaluations),
            scale=scaling.scale,
            offset=scaling.offset,
            noise=noise,
            planned=self.planned,
            begun=self.begun,
        )

    def finish(self, noise: Tensor) -> Tensor:
        """Chunks for points at t = 0, not clamped."""
        actor, at = self.policy.actor, self.situation(noise)
        field = dynamics(actor, self.flow, self.network, self.flat, self.cond, self.share, at)
        if (refiner := self.refiner) is not None:
            shown = seen(self.flow, self.cond, self.share)
            refine = lambda x, t, v: refiner(x, t, torch.cat([shown, v.flatten(1)], 1))  # noqa: E731
            field = dataclasses.replace(field, refine=refine)
        if self.flow.source.continues and self.planned is not None and self.begun is not None:
            history = self.flat.view(len(self.flat), self.policy.contract.history, -1)
            start = self.flow.source.begin(history).masked_fill(~self.begun, 0.0)
            noise = self.flow.interpolant.point(noise, self.planned, start)
            field = field.after(start)
        return self.flow.generate(field, noise, self.evaluations, self.generator)


def dynamics(
    actor: Actor,
    flow: Sampling,
    network: Callable[..., Tensor],
    flat: Float[Tensor, "b n"],
    cond: Float[Tensor, "b c"],
    share: Float[Tensor, " b"] | None,
    at: Situation,
) -> Dynamics:
    """The guided velocity of an actor for flat, scaled observations and what the encoder makes of them."""

    def predict(cond: Tensor) -> Network:
        shown = seen(flow, cond, share)
        return lambda x, s, t: network(x, s, t, shown) if flow.two_time else network(x, s, shown)

    null = cond if actor.null is None else actor.null.expand_as(cond)
    hidden = actor.hidings(flow.guidance.hides)
    if len(hidden):
        null, *parts = (actor.encoder(flat * mask).cond for mask in hidden.to(flat))
        return flow.dynamics(predict(cond), predict(null), [predict(part) for part in parts], at)
    return flow.dynamics(predict(cond), predict(null), (), at)
