"""Small random policies of every kind, and what engines are compared on."""

import numpy as np
import torch

from flowpolicy.core.seed import numpy_generator
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.policy import Policy
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.committed import Committed

from ..ways import sampler as named

MLPS = {"mlp": MLP(width=24, depth=3), "plain": Plain(width=24, depth=3)}
NETS = {**MLPS, "unet": UNet(width=8, levels=2), "transformer": Transformer(width=16, depth=2, heads=2)}
SAMPLERS = {"map": 1, "euler": 3, "midpoint": 4, "heun": 4, "direct": 1, "squashed": 1, "one_step": 1, "mip": 2}
"""Sampler -> number of evaluations."""
CRITIC = CriticConfig(width=16, depth=2, members=2, held_out=1, aggregate="min")


def make(contract, net="mlp", sampler="map", encoder=12, constant=False, **choice):
    """A policy whose every part matters: normaliser, biases and norms are drawn as well.

    ``constant``: the first action and the last number of the goal never varied in the data.
    """
    generator = torch.Generator().manual_seed(7)
    normalizer = Normalizer({k: v.shape[0] for k, v in contract.spec.observation.items()}, contract.spec.action.size)
    for name, value in normalizer.state_dict().items():
        value.copy_(torch.rand(value.shape, generator=generator) + (1.5 if name.endswith("limit") else 0.5))
    normalizer.observation("goal").limit[0] = float("inf")
    normalizer.action_scaling.limit.fill_(float("inf"))
    if constant:
        normalizer.observation("goal").limit[-1] = normalizer.action_scaling.limit[0] = 0.0
    config = PolicyConfig(NETS[net], StateEncoder(width=encoder), named(sampler, **choice))
    policy = Policy(config, contract, normalizer)
    for name, parameter in policy.actor.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        fan = parameter.shape[-1] if parameter.dim() == 2 else 1
        norm = "norm.weight" in name or name.endswith("scale")
        parameter.data.copy_(1.0 + 0.2 * drawn if norm else drawn / fan**0.5 if parameter.dim() == 2 else 0.3 * drawn)
    return policy.eval().requires_grad_(False)


def decisions(policy, batch, count=8):
    """Random observations, some beyond the normaliser's clamp, and noise."""
    random = numpy_generator(3, "decisions")
    contract = policy.contract
    for _ in range(count):
        obs = {
            key: random.integers(0, 256, (batch, contract.history, *spec.shape), np.uint8)
            if spec.kind == "image"
            else 2.0 * random.standard_normal((batch, contract.history, *spec.shape))
            for key, spec in contract.spec.observation.items()
        }
        shape = (batch * policy.shapes.candidates, contract.chunk, contract.spec.action.size)
        yield obs, random.standard_normal(shape).astype(np.float32)


def commitment(policy, batch, random):
    """Committed actions and how many, every number in turn; nothing for a policy that continues none."""
    if not policy.prefix:
        return ()
    action, scaling = policy.contract.spec.action.size, policy.normalizer.action_scaling
    drawn = random.uniform(-1, 1, (batch, policy.contract.chunk, action)) / scaling.scale.numpy()
    lengths = random.permutation(np.arange(batch) % (policy.prefix + 1))
    return (drawn + scaling.offset.numpy()).astype(np.float32), lengths


def eager(policy, obs, noise, nfe=None, committed=()):
    """What every engine must return."""
    tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
    tensors = {key: value if value.dtype == torch.uint8 else value.float() for key, value in tensors.items()}
    bound = None
    if committed:
        action, length = map(torch.from_numpy, committed)
        bound = Committed(action, length, length)
    return policy.act_from(tensors, torch.from_numpy(noise), nfe or policy.contract.nfe, bound).numpy()


def distance(policy, engine, batch, count=8, nfe=None):
    """Largest difference from the eager policy over random decisions, in normalised action units."""
    unit, worst, seen = policy.normalizer.action_scaling.scale.numpy(), 0.0, []
    random = numpy_generator(4, "committed")
    for obs, noise in decisions(policy, batch, count):
        committed = commitment(policy, batch, random)
        seen.append(eager(policy, obs, noise, nfe, committed))
        worst = max(worst, float(np.abs((engine.act(obs, noise, *committed) - seen[-1]) * unit).max()))
    varied = policy.normalizer.action_scaling.limit.numpy() > 0
    moves = np.ptp(np.stack(seen), axis=0)[..., varied] > 1e-2  # some actions may sit at their clamp throughout
    assert moves.mean() > 0.7, "the decisions do not differ, so nothing was compared"
    return worst
