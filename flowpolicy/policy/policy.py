"""The deployable thing: contract + normaliser + network + solver. ``act(obs) -> chunk``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.config import decode
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import read_json, read_tensors
from flowpolicy.core.spec import Contract, load_contract
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.solvers import integrate, jump, steps_for
from flowpolicy.nets.encoder import EncoderOutput, StateEncoder
from flowpolicy.nets.flow_nets import MapNet, VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

Net = MLP | UNet | Transformer
NETS: dict[str, Net] = {"mlp": MLP(), "unet": UNet(), "transformer": Transformer()}
"""Trunks by name, with their defaults; ``--agent.net NAME`` picks one."""

Sampler = Literal["map", "euler", "midpoint", "heun", "direct"]


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """What :meth:`Policy.load` must know to rebuild the network."""

    net: Net
    """Trunk over the action chunk."""
    encoder: StateEncoder
    """Encoder of the observation history."""
    sampler: Sampler
    """'map' jumps with a flow map; 'euler', 'midpoint', 'heun' integrate a velocity; 'direct' is regression."""


KINDS: dict[str, type] = {
    "policy": PolicyConfig,
    "state_encoder": StateEncoder,
    **{name: type(net) for name, net in NETS.items()},
}


class Actor(nn.Module):
    """Encoder and flow network: the part of a policy that is trained.

    Args:
        config: network and sampler.
        contract: decides observation, history, chunk and action sizes.

    """

    def __init__(self, config: PolicyConfig, contract: Contract) -> None:
        super().__init__()
        sizes = [int(torch.Size(spec.shape).numel()) for spec in contract.spec.observation.values()]
        self.keys = tuple(contract.spec.observation)
        self.encoder = config.encoder.build(contract.history * sum(sizes))
        flow = MapNet if config.sampler == "map" else VelocityNet
        self.net = flow(config.net, action=contract.spec.action.size, chunk=contract.chunk, cond=self.encoder.size)

    def condition(self, obs: dict[str, Tensor]) -> EncoderOutput:
        """Condition vector and encoder feature of *normalised* observations, name -> (b, o, *shape)."""
        flat = torch.cat([obs[key].flatten(2) for key in self.keys], dim=-1).flatten(1)
        output: EncoderOutput = self.encoder(flat)
        return output


class Policy(nn.Module):
    """A trained policy. Pure: everything random comes from the generator that ``act`` is given.

    Args:
        config: network and sampler.
        contract: what the policy may be used for and how.
        normalizer: fitted on the training data.

    """

    evaluations: int
    """Network evaluations since construction: counted where the network is called, not claimed."""

    def __init__(self, config: PolicyConfig, contract: Contract, normalizer: Normalizer) -> None:
        super().__init__()
        self.config, self.contract, self.normalizer = config, contract, normalizer
        self.actor = Actor(config, contract)
        self.evaluations = 0

    @torch.inference_mode()
    def act(self, obs: dict[str, Tensor], generator: torch.Generator, nfe: int | None = None) -> Float[Tensor, "b h a"]:
        """One action chunk per row, in environment units.

        Args:
            obs: name -> (b, o, *shape), as the environment gives them, oldest first.
            generator: source of the initial noise.
            nfe: network evaluations; the contract's number unless given.

        Raises:
            ConfigError: the sampler cannot act in ``nfe`` evaluations.

        """
        nfe = self.contract.nfe if nfe is None else nfe
        first = obs[self.actor.keys[0]]
        shape = (first.shape[0], self.contract.chunk, self.contract.spec.action.size)
        noise = torch.randn(shape, generator=generator, device=first.device)
        return self.act_from(obs, noise, nfe)

    @torch.inference_mode()
    def act_from(self, obs: dict[str, Tensor], noise: Float[Tensor, "b h a"], nfe: int) -> Float[Tensor, "b h a"]:
        """:meth:`act` with the initial noise passed in: deterministic."""
        cond, _ = self.actor.condition(self.normalizer.obs({key: obs[key] for key in self.actor.keys}))
        chunk = self._generate(noise, cond, nfe)
        # Only the finished chunk is clamped: clamping inside the solver damages NFE > 1 [algorithms 7.1, D9].
        return self.normalizer.unaction(chunk.clamp(-1.0, 1.0))

    def _generate(self, noise: Tensor, cond: Tensor, nfe: int) -> Tensor:
        sampler = self.config.sampler
        if sampler == "direct":
            if nfe != 1:
                raise ConfigError(f"a regression policy cannot act in {nfe} evaluations", expected="nfe 1")
            self.evaluations += 1
            chunk: Tensor = self.actor.net(torch.zeros_like(noise), noise.new_zeros(noise.shape[0]), cond).value
            return chunk
        steps = steps_for(nfe, sampler)
        if sampler == "map":
            return jump(self._counted(lambda x, s, t: self.actor.net(x, s, t, cond).value), noise, steps)
        return integrate(self._counted(lambda x, t: self.actor.net(x, t, cond).value), noise, steps, sampler)

    def _counted(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            self.evaluations += 1
            return network(*args)

        return call

    @property
    def parameters_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.actor.parameters())

    @classmethod
    def load(cls, path: Path | str, *, averaged: bool = True, device: torch.device | str = "cpu") -> Policy:
        """Load a policy from a run or checkpoint folder, after checking every file against its hash.

        Args:
            path: run folder (its newest checkpoint) or checkpoint folder.
            averaged: the averaged (EMA) weights; False takes the raw ones.
            device: where to put it.

        Raises:
            CheckpointError: a file is missing, altered or of another version.

        """
        folder = resolve(Path(path))
        contract = load_contract(folder / "contract.json")
        config = decode(read_json(folder / "config.json").get("policy"), KINDS, str(folder / "config.json"))
        if not isinstance(config, PolicyConfig):
            raise CheckpointError(f"{folder / 'config.json'} holds no policy", fix="use the version that wrote it")
        shapes = {key: int(torch.Size(spec.shape).numel()) for key, spec in contract.spec.observation.items()}
        policy = cls(config, contract, Normalizer(shapes, contract.spec.action.size))
        weights = folder / ("ema.safetensors" if averaged else "weights.safetensors")
        _load_strictly(policy.actor, weights)
        _load_strictly(policy.normalizer, folder / "normalizer.safetensors")
        return policy.to(device).eval().requires_grad_(False)


def _load_strictly(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(read_tensors(path), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the network of config.json: {error}",
            fix="use the flowpolicy version that wrote the checkpoint (contract.json names it)",
        ) from error
