"""A policy with a solver that is fitted to its own field; the weights stay as they are."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import torch
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import digest
from flowpolicy.flows.axes.schedules import Boss, UniformSteps
from flowpolicy.flows.axes.solvers import Euler, Fitted, Solver
from flowpolicy.flows.fitting import Trajectories, bellman, fit_subspace, step_costs, trajectories
from flowpolicy.policy.policy import Policy

FINE = 64
"""Euler steps of the trajectories that are fitted."""

Method = Literal["olss", "boss"]


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
    sampler = policy.flow
    flow = sampler.sampling
    mixed = flow.source.conditioned or flow.target.start or flow.target.integrates or flow.continues
    if policy.config.sampler is not sampler or flow.two_time or mixed or flow.guidance.intermediate:
        raise ConfigError(
            "a policy with candidates, a decorator, a prefix, a flow map, a conditioned source, a noise or segment "
            "prediction, a memory or guidance that depends on the steps cannot be fitted",
            expected="a velocity that carries noise from time 0",
        )
    rows = next(iter(obs.values())).shape[0]
    noise = flow.source.sample((rows, policy.contract.chunk, policy.contract.spec.action.size), generator)
    with torch.inference_mode():
        field = policy.dynamics(policy.streams(obs))
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
    copied.config = dataclasses.replace(policy.config, sampler=dataclasses.replace(sampler, sampling=better))
    copied.contract = dataclasses.replace(policy.contract, nfe=flow.guidance.total(evaluations))
    return copied


def _times(paths: Trajectories, nodes: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(paths.times[node]) for node in nodes)
