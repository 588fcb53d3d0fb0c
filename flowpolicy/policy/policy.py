"""The deployable thing: contract + normaliser + network + solver. ``act(obs) -> chunk``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from flowpolicy.core import checkpoint
from flowpolicy.core.config import decode, encode
from flowpolicy.core.devices import find_device
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import digest, read_object, write_json, write_tensors
from flowpolicy.core.ranges import require_ranges
from flowpolicy.core.spec import Contract, load_contract, save_contract
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.solvers import SolverName, integrate, jump, steps_for
from flowpolicy.policy.actor import KINDS, REFINING, SINGLE, Actor, PolicyConfig, load_strictly
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.engines.engine import Shapes
from flowpolicy.policy.flow import carry, generate, without_gradients
from flowpolicy.policy.inputs import (
    require_committed,
    require_finite,
    require_nfe,
    require_numbers,
    require_observations,
)
from flowpolicy.policy.previous import Previous

Array = TypeVar("Array", Tensor, NDArray[Any])


class Policy(nn.Module):
    """A trained policy. Pure: everything random comes from the generator that ``act`` is given.

    Args:
        config: network and sampler.
        contract: what the policy may be used for and how.
        normalizer: fitted on the training data.

    """

    evaluations: int
    """Network evaluations since construction: counted where the network is called, not claimed. With N candidates
    every step of the solver evaluates the network for N of them and counts N; the critic's own is not counted."""
    noise_scale: float = 1.0
    """Factor of the initial noise that :meth:`act` draws: 1 samples the law that was learned; 0 takes its middle, the
    same chunk every time. Not part of a checkpoint: who acts decides."""

    def __init__(self, config: PolicyConfig, contract: Contract, normalizer: Normalizer) -> None:
        super().__init__()
        self.config, self.contract, self.normalizer = config, contract, normalizer
        self.actor = Actor(config, contract)
        self.evaluations = 0
        self._histories = contract.histories

    @without_gradients
    def act(
        self,
        obs: Mapping[str, Array],
        generator: torch.Generator,
        nfe: int | None = None,
        committed: Committed | None = None,
        previous: Previous | None = None,
    ) -> Array:
        """One action chunk per row, (b, h, a), in environment units.

        Args:
            obs: name -> (b, o, *shape), as the environment gives them, oldest first; other keys are ignored. Tensors
                give a tensor, and NumPy arrays an array.
            generator: source of the initial noise.
            nfe: network evaluations, over all candidates; the contract's number unless given.
            committed: actions that are executed while the policy computes; the chunk begins with them, exactly.
            previous: what was done before, for policies that continue it; None in the first decision of an episode.

        Raises:
            ConfigError: the observations are not what the contract says or not finite, the sampler cannot act in
                ``nfe`` evaluations, or the policy was not trained for so many committed actions.

        """
        if not isinstance(generator, torch.Generator):
            raise ConfigError(
                f"the generator is of type {type(generator).__name__}",
                expected="a torch.Generator, such as torch.Generator().manual_seed(0)",
            )
        seen, flow = self.observed(obs), self.config.flow
        rows = len(seen[self.actor.keys[0]]) * (flow.guidance.candidates if flow else self.config.candidates)
        shape = (rows, self.contract.chunk, self.contract.spec.action.size)
        noise = (
            flow.source.sample(shape, generator)
            if flow
            else torch.randn(shape, generator=generator, device=generator.device)
        )
        nfe = self.contract.nfe if nfe is None else nfe
        return self._like(obs, self._act(seen, self.noise_scale * noise, nfe, committed, generator, previous))

    @without_gradients
    def act_from(
        self,
        obs: Mapping[str, Array],
        noise: Tensor | NDArray[Any],
        nfe: int,
        committed: Committed | None = None,
        generator: torch.Generator | None = None,
        previous: Previous | None = None,
    ) -> Array:
        """:meth:`act` with the initial noise (b k, h, a) passed in: deterministic.

        The k candidates of a row follow each other. ``generator`` serves solvers that draw noise on the way, and
        sources that draw more than noise.
        """
        return self._like(obs, self._act(self.observed(obs), noise, nfe, committed, generator, previous))

    def observed(self, obs: Mapping[str, Tensor] | Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Observations as tensors where the policy computes, checked; see :meth:`act` for what is refused."""
        require_observations(obs, self._histories)
        seen = {key: self._placed(obs[key]) for key in self._histories}
        for key, value in seen.items():
            require_finite(f"observation '{key}'", value)
        return seen

    def _placed(self, value: Tensor | NDArray[Any]) -> Tensor:
        """A tensor of the type and on the device of the policy's own."""
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, np.float32))
        return tensor.to(self.normalizer.action_scaling.offset)

    def _like(self, obs: Mapping[str, Array], chunk: Tensor) -> Array:
        """A chunk as an array, if observations are arrays."""
        as_tensor = isinstance(obs[self.actor.keys[0]], Tensor)
        return cast(Array, chunk if as_tensor else chunk.cpu().numpy())

    def _act(
        self,
        seen: dict[str, Tensor],
        noise: Tensor | NDArray[Any],
        nfe: int,
        committed: Committed | None,
        generator: torch.Generator | None,
        previous: Previous | None,
    ) -> Tensor:
        """Chunks for checked observations."""
        require_nfe(nfe)
        rows = len(seen[self.actor.keys[0]])
        each = (self.contract.chunk, self.contract.spec.action.size)
        chooses = self.config.flow is not None or self.config.critic is not None
        given = (getattr(noise, "shape", None) or (rows,))[0]
        candidates = max(1, given // rows) if chooses else 1
        require_numbers("the noise", noise, (rows * candidates, *each))
        start = self._placed(noise)
        require_finite("the noise", start)
        if committed is not None:
            require_committed(committed.action, committed.length, (rows, *each), self.config.prefix)
        if previous is not None:
            previous.require((rows, *each))
        chunk = self.normalizer.unaction(self.decide(self.normalized(seen), start, nfe, committed, generator, previous))
        return chunk if committed is None else committed.impose(chunk)

    def decide(
        self,
        flat: Float[Tensor, "b n"],
        noise: Float[Tensor, "bk h a"],
        nfe: int,
        committed: Committed | None = None,
        generator: torch.Generator | None = None,
        previous: Previous | None = None,
    ) -> Float[Tensor, "b h a"]:
        """:meth:`act_from` between the normaliser's two ends: from flat observation histories to chunks in [-1, 1]."""
        if self.config.flow is not None:
            return generate(self, flat, noise, nfe, generator, previous)
        actor = self.actor
        cond: Tensor = actor.encoder(flat).cond
        candidates = noise.shape[0] // flat.shape[0]
        if nfe % candidates:
            raise ConfigError(
                f"a policy cannot spend {nfe} evaluations on {candidates} candidates",
                expected=f"a multiple of {candidates}",
            )
        spent = int(actor.decorator is not None)
        if candidates > 1:
            cond = cond.repeat_interleave(candidates, 0)
        noise, cond = self._commit(noise, cond, committed, candidates)
        # Only the finished chunk is clamped: half-way states are no actions, and clamping them spoils several steps.
        chunk = self.normalizer.within(self._generate(noise, cond, nfe // candidates - spent, candidates))
        if actor.decorator is not None:
            chunk = self.normalizer.within(chunk + self.counted(actor.decorator, candidates)(chunk, cond))
        if actor.critic is not None:
            value = actor.critic.value(flat.repeat_interleave(candidates, 0), chunk).view(-1, candidates)
            chunk = best_of(chunk.view(-1, candidates, *chunk.shape[1:]), value)
        return chunk

    def require_plain_noise(self) -> None:
        """Raise ConfigError unless standard normal noise at the start is all the chance that acting takes.

        Engines and servers pass that noise in; a policy that wants more would act from the wrong law.
        """
        flow = self.config.flow
        if flow is None:
            return
        if not flow.source.standard or flow.solver.stochastic or flow.guidance.candidates > 1:
            raise ConfigError(
                f"the policy draws from the source '{flow.source.name}' with the solver '{flow.solver.name}' for "
                f"{flow.guidance.candidates} chunk(s); engines and servers have normal noise for one chunk only",
                fix="use Policy.load, whose act draws what the policy needs",
            )
        self.require_no_memory()

    def require_no_memory(self) -> None:
        """Raise ConfigError where the policy continues its previous chunk: what calls this keeps none."""
        flow = self.config.flow
        if flow is not None and flow.continues:
            raise ConfigError(
                "the policy continues its previous chunk, and nothing here remembers it",
                fix="roll it out with flowpolicy eval, or act with Policy.act(..., previous=...)",
            )

    @property
    def continues(self) -> bool:
        """Whether decisions depend on the previous chunk."""
        return self.config.flow is not None and self.config.flow.continues

    def normalized(self, obs: dict[str, Tensor]) -> Float[Tensor, "b n"]:
        """Flat, normalised observations."""
        return self.actor.flatten(self.normalizer.obs({key: obs[key] for key in self.actor.keys}))

    def condition(self, obs: dict[str, Tensor]) -> Float[Tensor, "b c"]:
        """What the network is told about observations, nothing being committed; see :meth:`evaluate`."""
        cond: Tensor = self.actor.encoder(self.normalized(obs)).cond
        width = self.contract.chunk if self.config.prefix else 0
        return torch.cat([cond.new_zeros(cond.shape[0], width), cond], dim=1)

    def evaluate(
        self, x: Float[Tensor, "b h a"], s: Float[Tensor, " b"], t: Float[Tensor, " b"], cond: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b h a"]:
        """Mean velocity from s to t of a flow map, else the velocity at s; normalised units; counted."""
        network = self.counted(self.actor.net, 1)
        return network(x, s, t, cond) if self.config.sampler == "map" else network(x, s, cond)

    def _commit(
        self, noise: Tensor, cond: Tensor, committed: Committed | None, candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Noise whose committed rows are the actions themselves, and the condition that says which they are."""
        if not self.config.prefix:
            return noise, cond
        if committed is None:
            return noise, torch.cat([cond.new_zeros(cond.shape[0], noise.shape[1]), cond], dim=1)
        rows = committed.rows.repeat_interleave(candidates, 0)
        action = self.normalizer.action(committed.action).repeat_interleave(candidates, 0)
        return torch.where(rows.unsqueeze(2), action, noise), torch.cat([rows.to(cond.dtype), cond], dim=1)

    @without_gradients
    def carry(self, obs: dict[str, Tensor], noise: Float[Tensor, "b h a"], nfe: int) -> Float[Tensor, "b h a"]:
        """Where the flow carries the noise: normalised, not clamped, without decorator and choice."""
        flat = self.normalized(obs)
        if self.config.flow is not None:
            return carry(self, flat, noise, nfe)
        return self._generate(noise, self.actor.encoder(flat).cond, nfe, 1)

    def _generate(self, noise: Tensor, cond: Tensor, nfe: int, candidates: int) -> Tensor:
        sampler = self.config.sampler
        network = self.counted(self.actor.net, candidates)
        if sampler in SINGLE:
            if nfe != 1:
                name = "one-step" if sampler == "one_step" else "regression"
                raise ConfigError(f"a {name} policy cannot act in {nfe} evaluations", expected="nfe 1")
            if sampler == "one_step":
                return network(noise, cond)
            start = torch.zeros_like(noise) if not self.config.prefix else self._prefix_only(noise, cond)
            chunk = network(start, noise.new_zeros(noise.shape[0]), cond)
            return chunk.tanh() if sampler == "squashed" else chunk
        if sampler == "mip":
            if nfe != 2:
                raise ConfigError(f"a mip policy acts in two evaluations, not in {nfe}", expected="nfe 2")
            first = network(torch.zeros_like(noise), noise.new_zeros(noise.shape[0]), cond)
            return network(first, noise.new_full(noise.shape[:1], REFINING), cond)
        steps = steps_for(nfe, sampler)
        if sampler == "map":
            return jump(lambda x, s, t: network(x, s, t, cond), noise, steps)
        return integrate(lambda x, t: network(x, t, cond), noise, steps, cast(SolverName, sampler))

    @staticmethod
    def _prefix_only(noise: Tensor, cond: Tensor) -> Tensor:
        """Zeros but in the committed rows: what a policy without noise starts from."""
        return torch.where(cond[:, : noise.shape[1]].unsqueeze(2) > 0, noise, 0.0)

    def counted(self, network: Callable[..., Any], candidates: int) -> Callable[..., Tensor]:
        """The values of a network that count as ``candidates`` evaluations each."""

        def call(*args: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():  # a compiled graph would be compiled anew for every count
                self.evaluations += candidates
            value: Tensor = network(*args).value
            return value

        return call

    @property
    def prefix(self) -> int:
        """Most committed actions that it was trained to continue."""
        return self.config.prefix

    @property
    def shapes(self) -> Shapes:
        """Sizes of what an engine of this policy reads and writes."""
        return Shapes(self.contract, self.config.candidates, self.config.prefix)

    def save(self, run: Path) -> Path:
        """Write the policy alone as the checkpoint of step 0 of a run, for :meth:`load`; returns its folder."""

        def write(folder: Path) -> None:
            for name in ("weights", "ema"):
                write_tensors(folder / f"{name}.safetensors", self.actor.state_dict())
            write_tensors(folder / "normalizer.safetensors", self.normalizer.state_dict())
            write_json(folder / "config.json", {"policy": encode(self.config, KINDS)})
            save_contract(folder / "contract.json", self.contract)

        return checkpoint.publish(run, 0, write)

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
            ConfigError: this machine has no such device.

        """
        device, folder = find_device(device), checkpoint.resolve(Path(path))
        contract = load_contract(folder / "contract.json")
        config = decode(read_object(folder / "config.json").get("policy"), KINDS, str(folder / "config.json"))
        if not isinstance(config, PolicyConfig):
            raise CheckpointError(f"{folder / 'config.json'} holds no policy", fix="use the version that wrote it")
        try:
            require_ranges(config, "policy.")
        except ConfigError as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error.what}", expected=error.expected) from error
        shapes = {key: int(torch.Size(spec.shape).numel()) for key, spec in contract.spec.observation.items()}
        policy = cls(config, contract, Normalizer(shapes, contract.spec.action.size))
        weights = folder / ("ema.safetensors" if averaged else "weights.safetensors")
        load_strictly(policy.actor, weights)
        load_strictly(policy.normalizer, folder / "normalizer.safetensors")
        if config.flow and config.flow.belongs_to not in ("", digest(policy.actor.state_dict())):
            raise CheckpointError(
                f"the solver of {folder} was fitted on other weights than {weights.name}",
                fix="fit it again: flowpolicy fit RUN --nfe N",
            )
        return policy.to(device).eval().requires_grad_(False)


def best_of(chunks: Float[Tensor, "b k h a"], values: Float[Tensor, "b k"]) -> Float[Tensor, "b h a"]:
    """The candidate of the largest value in every row."""
    return chunks[torch.arange(len(values), device=values.device), values.argmax(1)]
