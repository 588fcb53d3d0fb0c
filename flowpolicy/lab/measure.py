"""Train an agent on the chunk toy and measure how far its samples are from the toy's law."""

from __future__ import annotations

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.imitation import ImitationAgent
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, OBS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.lab.lab_plan import LabPlan
from flowpolicy.nets.layers import whole_operators
from flowpolicy.policy.policy import Policy

SCALE = 1000.0
"""Energy distances are given in thousandths."""


def agent_on(plan: LabPlan, config: Any, updates: int, seed: int) -> ImitationAgent:
    """An agent for the toy of the plan."""
    toy = plan.toy
    spec = Spec({"state": ObservationSpec((toy.obs,))}, ActionSpec(toy.action))
    contract = Contract(spec, 1, toy.steps, toy.steps, config.nfe)
    normalizer = Normalizer({"state": toy.obs}, toy.action)
    agent: ImitationAgent = config.build(contract, normalizer, steps=updates, seed=seed, compile=False)
    return agent


def train(agent: ImitationAgent, plan: LabPlan, updates: int, seed: int) -> dict[str, Any]:
    """Train on the toy's chunks; the last loss (None where it is not finite), seconds, and seconds of the processor."""
    toy, data = plan.toy, torch_generator(plan.toy.seed, "data")
    obs = toy.observe(toy.size, data)
    chunks = toy.chunks(obs, data)
    rows, noise = torch_generator(seed, "rows"), torch_generator(seed, "noise")
    valid = torch.ones(plan.batch, toy.steps, dtype=torch.bool)
    start, used = time.perf_counter(), time.process_time()
    loss = float("nan")
    for _ in range(updates):
        picked = torch.randint(toy.size, (plan.batch,), generator=rows)
        batch = {OBS: {"state": obs[picked].unsqueeze(1)}, ACTION: chunks[picked], VALID: valid}
        with whole_operators():
            loss = float(agent.update(batch, noise)["loss"])
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "loss": loss if loss == loss and abs(loss) != float("inf") else None,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
    }


def observations(plan: LabPlan, count: int = 512) -> dict[str, torch.Tensor]:
    """Observations that are trained on, name -> (n, 1, o), for whatever is fitted to a policy."""
    obs = plan.toy.observe(plan.toy.size, torch_generator(plan.toy.seed, "data"))
    return {"state": obs[:count].unsqueeze(1)}


def measure(policy: Policy, plan: LabPlan, seed: int) -> dict[str, list[float]]:
    """Energy distance, in thousandths, at every observation that was not trained on, by number of evaluations."""
    toy, held_out = plan.toy, torch_generator(plan.toy.seed, "held out")
    obs = toy.observe(plan.observations, held_out)
    many = obs.repeat_interleave(plan.samples, 0)
    truth = toy.chunks(many, held_out).reshape(plan.observations, plan.samples, -1)
    errors = {}
    for nfe in plan.nfes:
        try:
            drawn = policy.act({"state": many.unsqueeze(1)}, torch_generator(seed, "measure", nfe), nfe)
        except ConfigError:
            continue  # this solver cannot spend so many
        value = SCALE * energy_distance(drawn.reshape(truth.shape), truth)
        errors[str(nfe)] = [round(float(v), 3) if bool(torch.isfinite(v)) else float("nan") for v in value]
    return {nfe: values for nfe, values in errors.items() if all(v == v for v in values)}


def energy_distance(x: Float[Tensor, "n s d"], y: Float[Tensor, "n s d"]) -> Float[Tensor, " n"]:
    """``2 E|x - y| - E|x - x'| - E|y - y'|`` of every row's two samples, unbiased: 0 on average where they agree."""
    within = x.shape[1] * (x.shape[1] - 1)
    between = torch.cdist(x, y).mean((1, 2))
    return 2 * between - (torch.cdist(x, x).sum((1, 2)) + torch.cdist(y, y).sum((1, 2))) / within
