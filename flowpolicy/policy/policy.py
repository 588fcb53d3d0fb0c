"""The deployable thing: contract + normaliser + network + solver. ``act(obs) -> chunk``."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
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
from flowpolicy.core.seed import first_weights
from flowpolicy.core.spec import Contract, load_contract, save_contract
from flowpolicy.core.streams import Layout, Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.policy.actor import KINDS, Actor, PolicyConfig, load_strictly
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.engines.engine import Shapes
from flowpolicy.policy.inputs import (
    require_committed,
    require_finite,
    require_nfe,
    require_numbers,
    require_observations,
    require_pixels,
    require_told,
)
from flowpolicy.policy.previous import Previous
from flowpolicy.policy.samplers import Decision, FlowSampler, Guided

Array = TypeVar("Array", Tensor, NDArray[Any])
_M = TypeVar("_M", bound=Callable[..., Any])


def without_gradients(method: _M) -> _M:
    """Inference mode, or only no gradients where the policy differentiates its network while acting."""

    @functools.wraps(method)
    def run(self: Policy, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad() if self.config.sampler.differentiates else torch.inference_mode():
            return method(self, *args, **kwargs)

    return cast(_M, run)


_SEEDS = range(2**63)


def _repeated(value: Any, times: int) -> Any:
    """(*shape) as one row whose history is full of it, (1, o, *shape)."""
    if isinstance(value, Tensor):
        return value.expand(1, times, *value.shape)
    return np.broadcast_to(value, (1, times, *value.shape))


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

    def __init__(self, config: PolicyConfig, contract: Contract, normalizer: Normalizer) -> None:
        super().__init__()
        self.config, self.contract, self.normalizer = config, contract, normalizer
        self.actor = Actor(config, contract)
        self.evaluations = 0
        self._histories, self._pictures = contract.histories, contract.spec.images

    @without_gradients
    def act(
        self,
        obs: Mapping[str, Array],
        generator: torch.Generator | None = None,
        nfe: int | None = None,
        committed: Committed | None = None,
        previous: Previous | None = None,
        *,
        seed: int | None = None,
    ) -> Array:
        """One action chunk per row, (b, h, a), in environment units; of a single observation its chunk alone, (h, a).

        Args:
            obs: name -> (b, o, *shape), as the environment gives them, oldest first; other keys are ignored. Tensors
                give a tensor, and NumPy arrays an array. A single observation, name -> (*shape), is taken as the first
                of an episode: as if nothing else had been seen before.
            generator: source of the initial noise.
            nfe: network evaluations, over all candidates; the contract's number unless given.
            committed: actions that are executed while the policy computes; the chunk begins with them, exactly.
            previous: what was done before, for policies that continue it; None in the first decision of an episode.
            seed: of the noise, instead of a generator: equal seeds give equal chunks.

        Raises:
            ConfigError: the observations are not what the contract says or not finite, the sampler cannot act in
                ``nfe`` evaluations, or the policy was not trained for so many committed actions.

        """
        generator = self._source(generator, seed)
        if self._is_single(obs):
            history = {key: shape[0] for key, shape in self._histories.items()}
            rows: Any = {key: _repeated(obs[key], times) for key, times in history.items()}
            chunk: Any = self.act(rows, generator, nfe, committed, previous)
            return cast(Array, chunk[0])
        seen = self.observed(obs)
        noise = self.noise(len(seen[self.actor.keys[0]]), generator)
        nfe = self.contract.nfe if nfe is None else nfe
        return self._like(obs, self._act(seen, noise, nfe, committed, generator, previous))

    def _source(self, generator: torch.Generator | None, seed: int | None) -> torch.Generator:
        """Where the noise comes from: a generator, or one that is made of a seed."""
        if seed is None:
            if not isinstance(generator, torch.Generator):
                raise ConfigError(
                    f"the generator is of type {type(generator).__name__}",
                    expected="seed=0, or a torch.Generator, such as torch.Generator().manual_seed(0)",
                )
            return generator
        if generator is not None:
            raise ConfigError("a generator and a seed", expected="one of them: the seed makes a generator")
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed not in _SEEDS:
            raise ConfigError(f"seed={seed!r}", expected="a whole number from 0 on")
        device = self.normalizer.action_scaling.offset.device
        return torch.Generator(device=device).manual_seed(int(seed))

    def _is_single(self, obs: Any) -> bool:
        """Whether these are arrays of one moment, without rows and history."""
        if not isinstance(obs, Mapping):
            return False
        return all(
            len(getattr(obs.get(key), "shape", shape)) == len(shape) - 1 for key, shape in self._histories.items()
        )

    def noise(self, rows: int, generator: torch.Generator) -> Float[Tensor, "bk h a"]:
        """Noise of the sampler's law for so many observations, k chunks each, on the generator's device."""
        sampler, each = self.config.sampler, (self.contract.chunk, self.contract.spec.action.size)
        return sampler.law.sample((rows * sampler.candidates, *each), generator)

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
        seen = {}
        for key in self._histories:
            if key in self._pictures:
                seen[key] = self._picture(key, obs[key])
            else:
                seen[key] = self._placed(obs[key])
                require_finite(f"observation '{key}'", seen[key])
                if self.contract.spec.observation[key].words:
                    require_told(key, seen[key])
        return seen

    def _picture(self, key: str, value: Tensor | NDArray[Any]) -> Tensor:
        """Pictures where the policy computes, uint8 as they were taken."""
        require_pixels(key, value)
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return tensor.to(self.normalizer.action_scaling.offset.device)

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
        given = (getattr(noise, "shape", None) or (rows,))[0]
        candidates = max(1, given // rows) if self.config.sampler.candidates > 1 else 1  # who chooses may have fewer
        require_numbers("the noise", noise, (rows * candidates, *each))
        start = self._placed(noise)
        require_finite("the noise", start)
        if committed is not None:
            require_committed(committed.action, committed.length, (rows, *each), self.prefix)
        if previous is not None:
            previous.require((rows, *each))
        chunk = self.normalizer.unaction(self.decide(self.streams(seen), start, nfe, committed, generator, previous))
        return chunk if committed is None else committed.impose(chunk)

    def decide(
        self,
        streams: Streams,
        noise: Float[Tensor, "bk h a"],
        nfe: int,
        committed: Committed | None = None,
        generator: torch.Generator | None = None,
        previous: Previous | None = None,
    ) -> Float[Tensor, "b h a"]:
        """:meth:`act_from` between the normaliser's two ends: from :meth:`streams` to chunks in [-1, 1]."""
        decision = self.decision(streams, nfe, committed, generator, previous)
        return self.config.sampler.sample(decision, noise)

    def decision(
        self,
        streams: Streams,
        nfe: int,
        committed: Committed | None = None,
        generator: torch.Generator | None = None,
        previous: Previous | None = None,
    ) -> Decision:
        """What the sampler may know, from scaled streams and the rest in environment units."""
        scaled = self.normalizer.action
        return Decision(
            self.actor,
            self.normalizer,
            streams,
            self.actor.encoder(streams).cond,
            nfe,
            count=self._count,
            generator=generator,
            committed=None if committed is None else committed._replace(action=scaled(committed.action)),
            previous=None
            if previous is None
            else previous._replace(executed=scaled(previous.executed), planned=scaled(previous.planned)),
        )

    def _count(self, evaluations: int) -> None:
        self.evaluations += evaluations

    def require_plain_noise(self) -> None:
        """Raise ConfigError unless the noise at the start is all the chance and memory that acting takes.

        Engines and servers pass that noise in; a policy that wants more would act otherwise.
        """
        if reason := self.config.sampler.live:
            raise ConfigError(
                f"engines and servers cannot run this policy: {reason}",
                expected="a policy that is given its noise at the start, and nothing else by chance or from before",
                fix="use Policy.load, whose act draws what the policy needs",
            )

    def require_no_memory(self) -> None:
        """Raise ConfigError where the policy continues its previous chunk: what calls this keeps none."""
        if self.continues:
            raise ConfigError(
                "the policy continues its previous chunk, and nothing here remembers it",
                fix="roll it out with flowpolicy eval, or act with Policy.act(..., previous=...)",
            )

    @property
    def continues(self) -> bool:
        """Whether decisions depend on the previous chunk."""
        return self.config.sampler.continues

    def streams(self, obs: Mapping[str, Tensor]) -> Streams:
        """Observations in environment units, name -> (b, o, *shape), as encoder, critic and sampler read them."""
        return self.actor.streams(self.normalizer, obs)

    @without_gradients
    def carry(self, streams: Streams, noise: Float[Tensor, "b h a"], nfe: int) -> Float[Tensor, "b h a"]:
        """Where the flow carries the noise, from :meth:`streams`: not clamped, without decorator and choice."""
        self.require_no_memory()
        return self.flow.carry(self.config.sampler.plain(self.decision(streams, nfe)), noise)

    def dynamics(self, streams: Streams) -> Dynamics:
        """The flow's velocity for fixed observations (:meth:`streams`); of a flow map, also its mean velocity.

        Not counted as evaluations.
        """
        return self.flow.dynamics(self.config.sampler.plain(self.decision(streams, 1)))

    @property
    def flow(self) -> FlowSampler:
        """The flow that carries noise to chunks.

        Raises:
            ConfigError: the policy has none.

        """
        flow = self.config.sampler.flow
        if flow is None:
            raise ConfigError(
                f"a {type(self.config.sampler).__name__} policy follows no flow",
                expected="a policy of Flow BC, of DM1 or of the flow laboratory",
            )
        return flow

    def guided(self) -> Policy:
        """A policy with the same networks that continues committed actions untrained (:class:`Guided`).

        Raises:
            ConfigError: the policy has no intermediate states to guide.

        """
        guided = copy.copy(self)
        guided.config = dataclasses.replace(self.config, sampler=Guided(self.config.sampler))
        return guided

    @property
    def prefix(self) -> int:
        """Most committed actions that it can continue, always fewer than a chunk has."""
        return min(self.config.sampler.prefix, self.contract.chunk - 1)

    @property
    def shapes(self) -> Shapes:
        """Sizes of what an engine of this policy reads and writes."""
        sampler = self.config.sampler
        return Shapes(self.contract, sampler.candidates, self.prefix, sampler.law)

    def save(
        self,
        run: Path,
        *,
        step: int = 0,
        config: Mapping[str, Any] | None = None,
        also: Callable[[Path], None] = lambda folder: None,
    ) -> Path:
        """Write the policy as a checkpoint of a run, for :meth:`load`; returns its folder.

        Args:
            run: run folder.
            step: updates that it took.
            config: what ``config.json`` holds beside the policy.
            also: writes further files into the folder that it is given.

        """

        def write(folder: Path) -> None:
            for name in ("weights", "ema"):
                write_tensors(folder / f"{name}.safetensors", self.actor.state_dict())
            write_tensors(folder / "normalizer.safetensors", self.normalizer.state_dict())
            write_json(folder / "config.json", {**(config or {}), "policy": encode(self.config, KINDS)})
            save_contract(folder / "contract.json", self.contract)
            also(folder)

        return checkpoint.publish(run, step, write)

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
        widths = Layout(contract.spec.observation).widths
        with first_weights(0):  # which are replaced
            policy = cls(config, contract, Normalizer(widths, contract.spec.action.size))
        weights = folder / ("ema.safetensors" if averaged else "weights.safetensors")
        load_strictly(policy.actor, weights)
        load_strictly(policy.normalizer, folder / "normalizer.safetensors")
        if config.sampler.belongs_to not in ("", digest(policy.actor.state_dict())):
            raise CheckpointError(
                f"the solver of {folder} was fitted on other weights than {weights.name}",
                fix="fit it again: flowpolicy fit RUN --nfe N",
            )
        return policy.to(device).eval().requires_grad_(False)


def load_policy(run: str | os.PathLike[str], *, averaged: bool = True, device: torch.device | str = "cpu") -> Policy:
    """The policy of a run, to be asked for chunks; a :class:`flowpolicy.Session` of it acts step by step.

    ::

        policy = fp.load_policy("runs/lift")
        chunk = policy.act(obs, seed=0)  # name -> (*shape) in, (h, a) out, NumPy

    Args:
        run: a run, its folder (the newest checkpoint) or a checkpoint folder.
        averaged: the averaged (EMA) weights; False takes the raw ones.
        device: where to put it.

    Raises:
        CheckpointError: a file is missing, altered or of another version.
        ConfigError: this machine has no such device.

    """
    return Policy.load(os.fspath(run), averaged=averaged, device=device)
