"""Every agent at toy size, with batches: what must hold for all of them is tested on this list."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch.utils import _pytree as pytree

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.ifql import IFQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.mean_flow_q import MeanFlowQ
from flowpolicy.agents.offline.qc import QC
from flowpolicy.agents.students.distillation import METHODS, Order, student_of
from flowpolicy.core import keys
from flowpolicy.core.seed import torch_generator
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.train.kinds import KINDS

from ..taught import CONTRACT
from .groups import post_training

ROWS = 12
SIZES = {"chunk": 2, "execute": 2}
SMALL = {"net": MLP(width=8, depth=1), "encoder": StateEncoder(width=4), **SIZES}
CRITIC = CriticConfig(width=8, depth=1)
VALUE = {"net": Plain(width=8, depth=1), "critic": CRITIC, **SIZES}


def _family(name, **sizes):
    """Every agent of a folder of ``agents``, by its tag."""
    return {
        tag: kind(**sizes) for tag, kind in KINDS.items() if kind.__module__.startswith(f"flowpolicy.agents.{name}.")
    }


MAP = {**VALUE, "net": MLP(width=8, depth=1)}
CLONING = _family("cloning", **SMALL) | {
    "flow_bc_prefix": FlowBC(**{**SMALL, "execute": 1}, prefix=1),
    "dm1_prefix": DM1(**{**SMALL, "execute": 1}, prefix=1),
}
# A new agent is here with its defaults; those of some have to be smaller, or another network.
OFFLINE = _family("offline", **{**VALUE, "chunk": 1, "execute": 1}) | {
    "fql": FQL(**VALUE, flow_steps=2),
    "iql": IQL(**VALUE, ema=0.9),
    "ifql": IFQL(**VALUE, candidates=3, flow_steps=2),
    "qc": QC(**VALUE, candidates=3, target_candidates=2, flow_steps=2),
    "qc_distilled": QC(**VALUE, mode="distilled", flow_steps=2),
    "mean_flow_q": MeanFlowQ(**MAP, target_candidates=2),
    "fisher": Fisher(**MAP),
    "fisher_euler_kl2": Fisher(**VALUE, base="euler", flow_steps=2, metric=Metric(mode="kl2")),
}
STUDENTS = tuple(METHODS)
GROUPS = {
    "gdro": {},
    "gdro_uniform": {"weight": "uniform", "objective": "dpo"},
    "trajectory_balance": {"objective": "trajectory_balance"},
}
EVERY = (*CLONING, *OFFLINE, *STUDENTS, *GROUPS)
STEPS = 10


def make(name, folder, *, compile=False, scaling="none", seed=0, device="cpu"):
    """An agent and a function of a generator that makes its batches; ``folder`` keeps the teacher of a student."""
    if name in GROUPS:
        base, groups = _base(), _groups()
        config = post_training.config_for(base, **{"bc_weight": 0.5, "anchor": 0.1, **GROUPS[name]})
        config = _scaled(config, scaling)
        options = {"base": base, "groups": groups, "steps": STEPS, "seed": seed, "compile": compile, "device": device}
        agent = config.build(base.contract, base.normalizer, **options)
        return agent, lambda random: post_training.batch(groups, random, ROWS)
    config = CLONING.get(name) or OFFLINE.get(name) or _student(name, folder)
    config = _scaled(config, scaling)
    contract = dataclasses.replace(CONTRACT, history=1, chunk=config.chunk, execute=config.execute, nfe=config.nfe)
    agent = config.build(contract, Normalizer({"state": 2}, 2), steps=STEPS, seed=seed, compile=compile, device=device)
    return agent, functools.partial(transitions if name in OFFLINE else windows, chunk=config.chunk)


def _scaled(config, scaling):
    """With every optimiser scaled by the batch, or as it is."""
    if scaling == "none":
        return config
    optimizers = [field.name for field in dataclasses.fields(config) if field.name.endswith("optimizer")]
    scaled = {name: dataclasses.replace(getattr(config, name), scaling=scaling) for name in optimizers}
    return dataclasses.replace(config, **scaled)


@functools.cache
def _base():
    return post_training.trained(post_training.BASES["dm1"], post_training.gaussian, 3)


@functools.cache
def _groups():
    return post_training.groups_of(_base(), post_training.linear, states=32, candidates=4, epochs=1)


def _student(name, folder):
    run = folder / "teacher"
    if not run.exists():
        agent, batches = make("flow", folder)
        update(agent, batches, STEPS)
        agent.policy().save(run)
    order = Order(nfe=1 if name == "slimflow" else 2, teacher_nfe=4, real=0.5 if name == "improved-reflow" else 0.0)
    return student_of(run, CLONING["flow"], name, order, lambda: _state(16, torch_generator(0)))[0]


def _state(rows, random):
    return {"state": 2 * torch.rand(rows, 1, 2, generator=random) - 1}


def windows(random, chunk):
    """Chunks that follow their observation; one of them reaches past its episode."""
    obs = _state(ROWS, random)
    action = (obs["state"] + 0.1 * torch.randn(ROWS, chunk, 2, generator=random)).clamp(-1, 1)
    valid = torch.ones(ROWS, chunk, dtype=torch.bool)
    valid[0, 1:] = False
    return {keys.OBS: obs, keys.ACTION: action, keys.VALID: valid}


def transitions(random, chunk):
    """Windows with rewards; some of them end."""
    batch = windows(random, chunk)
    more = {
        keys.NEXT_OBS: _state(ROWS, random),
        keys.NEXT_ACTION: 2 * torch.rand(ROWS, 2, generator=random) - 1,
        keys.REWARD: torch.randn(ROWS, chunk, generator=random),
        keys.MASK: (torch.rand(ROWS, generator=random) < 0.7).float(),
        keys.STEPS: torch.full((ROWS,), float(chunk)),
    }
    return batch | more


def update(agent, batches, times, seed=0):
    """Metrics of some updates."""
    draw, noise = torch_generator(seed, "draw"), torch_generator(seed, "noise")
    return [agent.update(batches(draw), noise) for _ in range(times)]


def flat(agent):
    """Everything that an agent stores."""
    return {f"{file}/{k}": v.clone() for file, tensors in agent.state_dict().items() for k, v in tensors.items()}


def moved(batch, device):
    """A batch, or anything made of tensors, on a device."""
    return pytree.tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, batch)
