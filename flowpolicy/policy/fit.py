"""A policy with a solver that is fitted to its own field; the weights stay as they are."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import torch
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import digest
from flowpolicy.flows.axes.guidance import Situation
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.schedules import Boss, UniformSteps
from flowpolicy.flows.axes.solvers import Euler, Fitted, Solver
from flowpolicy.flows.axes.spec import Sampling
from flowpolicy.flows.fitting import Trajectories, bellman, fit_subspace, step_costs, trajectories
from flowpolicy.policy.flow import dynamics
from flowpolicy.policy.policy import Policy

FINE = 64
"""Euler steps of the trajectories that are fitted."""

Method = Literal["olss", "boss"]


def sampling_of(policy: Policy) -> Sampling:
    """How a policy samples, whether or not it comes from the flow laboratory.

    Raises:
        ConfigError: it follows no velocity.

    """
    if policy.config.flow is not None:
        return policy.config.flow
    if policy.config.sampler not in ("euler", "midpoint", "heun"):
        raise ConfigError(
            f"a policy with the sampler '{policy.config.sampler}' follows no velocity that a solver could be fitted to",
            fix="fit a policy of Flow BC or of the flow laboratory",
        )
    return Sampling(solver=make("solver", policy.config.sampler))


def fitted(
    policy: Policy, obs: dict[str, Tensor], evaluations: int, method: Method, generator: torch.Generator
) -> Policy:
    """A copy of the policy whose solver spends ``evaluations`` per chunk where they cost least.

    'boss' puts the steps of Euler's method by dynamic programming; 'olss' fits what every state is made of, on these
    nodes or on equal steps, whichever ends nearer to the fine trajectories
    (docs/methods/flow-laboratory.md#fitted-solvers).

    Args:
        policy: trained.
        obs: observations to fit on, name -> (m, o, *shape); 512 are plenty.
        evaluations: evaluations per chunk, guidance aside.
        method: what to fit.
        generator: source of the noise.

    Raises:
        ConfigError: the policy has candidates, a decorator or a flow that is not deterministic.

    """
    flow = sampling_of(policy)
    mixed = flow.source.conditioned or flow.target.start or flow.target.integrates or flow.continues
    if policy.config.candidates > 1 or policy.config.decorated or mixed or flow.guidance.intermediate:
        raise ConfigError(
            "a policy with candidates, a decorator, a conditioned source, a noise or segment prediction, a memory or "
            "guidance that depends on the steps cannot be fitted",
            expected="a flow from noise at time 0",
        )
    rows = next(iter(obs.values())).shape[0]
    noise = flow.source.sample((rows, policy.contract.chunk, policy.contract.spec.action.size), generator)
    with torch.inference_mode():
        flat = policy.normalized(obs)
        network = lambda *args: policy.actor.net(*args).value  # noqa: E731, the call that counts is in the policy
        field = dynamics(
            policy.actor, flow, network, flat, policy.actor.encoder(flat).cond, None, Situation(path=flow.interpolant)
        )
        paths = trajectories(field, noise, FINE)
    nodes = [bellman(step_costs(paths), evaluations)]
    weights = digest(policy.actor.state_dict())
    if method == "olss":
        # One step's cost ignores what later steps make of it: equal steps are sometimes the better nodes.
        nodes.append(tuple(round(FINE * k / evaluations) for k in range(evaluations + 1)))
        solvers = [Fitted(_times(paths, chosen), fit_subspace(paths, chosen), weights) for chosen in nodes]
        with torch.inference_mode():
            ends = [solver.solve(field, noise, (), evaluations, None).flatten(1) for solver in solvers]
        solver: Solver = min(
            zip(ends, solvers, strict=True), key=lambda pair: float((pair[0] - paths.states[-1]).square().mean())
        )[1]
        better = dataclasses.replace(flow, solver=solver, schedule=UniformSteps())
    else:
        better = dataclasses.replace(flow, solver=Euler(), schedule=Boss(_times(paths, nodes[0]), weights))
    copied = copy.deepcopy(policy)
    copied.config = dataclasses.replace(policy.config, sampler="flow", flow=better)
    copied.contract = dataclasses.replace(policy.contract, nfe=flow.guidance.total(evaluations))
    return copied


def _times(paths: Trajectories, nodes: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(paths.times[node]) for node in nodes)
