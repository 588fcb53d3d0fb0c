"""The one acting loop: one observation after the other in, one action after the other out.

History, chunk queue, noise, committed actions, previous chunk, age of what is seen and the check of what comes out live
here once, for everything that acts: rollouts, collection, labelling, robots and notebooks. No torch is imported for an
engine that needs none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ActionError, ConfigError
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import Contract
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.engines.engine import Engine
from flowpolicy.policy.history import ObservationHistory
from flowpolicy.policy.inputs import followed, require_chunks, require_followed, require_nfe, told
from flowpolicy.policy.previous import Previous
from flowpolicy.policy.queue import ChunkQueue

if TYPE_CHECKING:
    import torch

Execution = Literal["naive", "aligned", "real_time"]
"""What is done with a chunk whose observation is ``age`` actions old: 'naive' executes it from its first row on, as
if no time had passed; 'aligned' skips ``age`` rows; 'real_time' also tells the policy what they were."""


@runtime_checkable
class ActingPolicy(Protocol):
    """What a session needs of :class:`flowpolicy.policy.policy.Policy`, and of what stands in its place."""

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted where the network is called."""

    @property
    def contract(self) -> Contract:
        """What the policy was trained for."""

    def act(self, obs: dict[str, torch.Tensor], generator: torch.Generator, nfe: int | None = None) -> torch.Tensor:
        """(b, h, a) actions in environment units for observations name -> (b, o, *shape).

        With the execution 'real_time' it is given ``committed=`` too (:class:`flowpolicy.policy.committed.Committed`),
        and ``previous=`` (:class:`flowpolicy.policy.previous.Previous`) where it has a true attribute ``continues``;
        with another scale of the noise than 1 it is asked for ``noise(1, generator)`` and then by ``act_from``.
        How many actions may be committed is its attribute ``prefix``; all but the last of a chunk where it has none.
        """


@runtime_checkable
class ChunkSource(Protocol):
    """What gives a session its chunks, wherever they are computed."""

    @property
    def contract(self) -> Contract:
        """What the policy was trained for."""

    @property
    def prefix(self) -> int:
        """Most committed actions that it continues; 0 for none."""

    @property
    def continues(self) -> bool:
        """Whether its decisions depend on the previous chunk."""

    @property
    def evaluations(self) -> int:
        """Network evaluations so far."""

    def stream(self, seed: int) -> Any:
        """The source of the noise of one episode; equal seeds give equal noise."""

    def chunk(
        self,
        obs: Mapping[str, NDArray[Any]],
        stream: Any,
        committed: Committed | None = None,
        previous: Previous | None = None,
    ) -> NDArray[Any] | None:
        """(h, a) actions in environment units; None where there are none in time.

        Args:
            obs: name -> (o, *shape), oldest first.
            stream: of :meth:`stream`.
            committed: what the chunk must begin with: a batch of one, of arrays.
            previous: what was done before, likewise; given where it :attr:`continues`.

        """


class Session:
    """Turns one observation after the other into actions: arrays in, arrays out.

    Whatever decides, and however late it sees::

        session = Session(load_engine("runs/lift"), seed=0)  # or Policy.load("runs/lift")
        obs, over = robot.begin(), False
        while not over:
            obs, over = robot.step(session.act(obs))

    Args:
        policy: what decides: a :class:`~flowpolicy.policy.policy.Policy`, an engine of
            :func:`~flowpolicy.policy.engines.load_engine`, or what stands in their place.
        seed: of the first episode's noise.
        execute: actions of a chunk that are executed before the next decision; the contract's number unless given.
        nfe: network evaluations per chunk; the contract's number, or the engine's, unless given.
        noise_scale: factor of the initial noise: 1 acts by the law that was learned, 0 by its middle.
        execution: what is done about observations that are older than the last action.
        most_committed: rows that may be committed with the execution 'real_time'; as many as the policy can continue
            unless given.
        device: where noise is drawn and observations are placed; that of the policy's parameters unless given.
        instruction: what is to be done, one of the texts of the contract; for policies that were trained on several.
            The only text of one that knows a single one unless given.

    Raises:
        ConfigError: the policy cannot act so.

    """

    def __init__(
        self,
        policy: ActingPolicy | Engine | ChunkSource,
        *,
        seed: int = 0,
        execute: int | None = None,
        nfe: int | None = None,
        noise_scale: float = 1.0,
        execution: Execution = "naive",
        most_committed: int | None = None,
        device: torch.device | str | None = None,
        instruction: str = "",
    ) -> None:
        if nfe is not None:
            require_nfe(nfe)
        self.source: ChunkSource
        if isinstance(policy, Engine):
            self.source = EngineSource(policy, nfe, noise_scale)
        elif isinstance(policy, ChunkSource):
            self.source = policy
        else:
            self.source = PolicySource(policy, nfe, noise_scale, device)
        self.contract: Contract = self.source.contract
        self.instruction = followed(instruction, self.contract.spec)
        """The text that is followed; empty for a policy that takes none, and where observations say it."""
        self.told = told(self.instruction, self.contract.spec)
        self._untold = self.contract.spec.instructions.keys() - self.told.keys()
        self.nfe = int(getattr(policy, "nfe", self.contract.nfe) if nfe is None else nfe)
        self.execute = self.contract.execute if execute is None else execute
        self.execution = execution
        self.most_committed = int(self.source.prefix if most_committed is None else most_committed)
        if not 1 <= self.execute <= self.contract.chunk:
            raise ConfigError(f"execute={self.execute}", expected=f"1 to {self.contract.chunk}, the length of a chunk")
        if execution == "real_time" and not self.most_committed:
            raise ConfigError(
                "real-time chunking with a policy that was not trained to continue committed actions",
                fix="train with --agent.prefix N, or act by policy.guided() where a velocity takes several steps",
            )
        self.seed, self._resets = seed, 0
        self.episode = self.begin(seed)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: nothing is seen yet, nothing planned.

        Args:
            seed: of its noise: that of a plan repeats an episode of a rollout. The next one under the session's own
                seed unless given.

        """
        self._resets += 1
        self.episode = self.begin(derive(self.seed, "session", self._resets) if seed is None else seed)

    def act(self, obs: Mapping[str, NDArray[Any]], age: int = 0) -> NDArray[Any]:
        """(a,) the next action, in environment units.

        Args:
            obs: name -> (*shape), the newest observation, as the environment gives it; other keys are ignored, and
                pictures may be left out where ``session.episode.looks`` is not true.
            age: actions that were executed since it was taken; 0 where nothing is late. An observation that is one
                action older than the last one is that one, and no new one.

        Raises:
            ConfigError: a key is missing, not of its shape, or not finite when the policy decides.
            ActionError: the policy's chunk is not finite, not of its shape, or did not come in time.

        """
        self.episode.see(obs, age)
        return self.episode.act()

    def require_told(self, obs: Mapping[str, Any]) -> None:
        """Raise ConfigError where neither the session nor ``obs`` says which of several instructions is meant."""
        if self._untold and not self._untold <= obs.keys():
            require_followed("", self.contract.spec)

    def begin(self, seed: int, plan: NDArray[Any] | None = None) -> LiveEpisode:
        """An episode beside all others: many can be under way, and none depends on another.

        Args:
            seed: of its noise.
            plan: (n, a) actions that are executed before the policy is asked.

        """
        return LiveEpisode(self, seed, plan)


class LiveEpisode:
    """One episode under way: what it has seen, what waits to be executed, its noise and its tallies.

    The policy sees the row of one episode alone. A batched matrix product rounds differently with the number of rows,
    and a contact-rich simulation amplifies the last bit: with one row per call an episode comes out bit for bit the
    same however many are under way.
    """

    steps = 0
    """Actions given."""
    evaluations = 0
    """Network evaluations."""
    stale = 0
    """Decisions on an observation too old for the chunk or, in real time, for what may be committed."""
    age = 0
    """Actions executed since the newest observation, when it was given."""

    def __init__(self, session: Session, seed: int, plan: NDArray[Any] | None = None) -> None:
        self._session, self._stream = session, session.source.stream(seed)
        self.history, self.queue = ObservationHistory(session.contract), ChunkQueue(session.execute)
        self.decision_seconds: list[float] = []
        if plan is not None:
            self.queue.push(plan, execute=len(plan))

    @property
    def looks(self) -> bool:
        """Whether a decision will see the observation of now, so that its pictures have to be taken."""
        return not len(self.history) or self.queue.left < self._session.contract.history

    def see(self, obs: Mapping[str, NDArray[Any]], age: int = 0) -> None:
        """Append an observation, name -> (*shape), that was taken ``age`` actions ago; see :meth:`Session.act`.

        Its pictures may be left out where :attr:`looks` is not true.
        """
        self._session.require_told(obs)
        repeated = bool(len(self.history)) and age == self.age + 1
        self.age = age
        if not repeated:
            self.history.append({**obs, **self._session.told} if self._session.told else obs, whole=self.looks)

    def act(self) -> NDArray[Any]:
        """(a,) the next action; where none waits, the policy decides. Raises ActionError."""
        if self.queue.empty:
            chunk = self.decide()
            if chunk is None:
                raise ActionError("the policy gave no chunk in time", fix="allow it a longer budget")
            self.queue.push(chunk, 0 if self._session.execution == "naive" else self.age)
        action = self.queue.pop().copy()
        self.steps += 1
        return action

    def decide(self, committed: Committed | None = None) -> NDArray[Any] | None:
        """(h, a) a new chunk for what was seen, or None where it did not come in time; nothing is queued.

        Args:
            committed: what it must begin with, where the session's own execution does not say.

        Raises:
            ActionError: it is not finite, or not of its shape.

        """
        source, contract = self._session.source, self._session.contract
        told = self._committed() if committed is None else committed, self._previous()
        counted, start = source.evaluations, time.perf_counter()
        chunk: NDArray[Any] | None = source.chunk(self.history.stacked(), self._stream, *told)
        self.decision_seconds.append(time.perf_counter() - start)
        self.evaluations += source.evaluations - counted
        if chunk is not None:
            require_chunks(chunk, (contract.chunk, contract.spec.action.size))
        return chunk

    def _committed(self) -> Committed | None:
        session = self._session
        if session.execution == "naive":
            return None
        if session.execution == "aligned":
            self.stale += self.age > session.contract.chunk - 1
            return None
        self.stale += self.age > session.most_committed
        return self.queue.committed(self.age, session.contract.chunk, session.most_committed)

    def _previous(self) -> Previous | None:
        session = self._session
        if not session.source.continues:
            return None
        return self.queue.previous(session.contract.chunk, 0 if session.execution == "naive" else self.age)


class EngineSource:
    """Chunks of an engine, one row at a time; see :class:`ChunkSource`.

    Args:
        engine: loaded.
        nfe: what is asked for; an engine has one number of evaluations.
        noise_scale: factor of the noise.

    """

    continues = False

    def __init__(self, engine: Engine, nfe: int | None, noise_scale: float) -> None:
        if nfe not in (None, engine.nfe):
            raise ConfigError(f"nfe={nfe} with an engine of {engine.nfe}", fix=f"load_engine(..., nfe={nfe})")
        self.engine, self.contract, self.prefix = engine, engine.contract, engine.prefix
        self.evaluations, self._scale = 0, noise_scale

    def stream(self, seed: int) -> np.random.Generator:
        """A generator of NumPy."""
        return np.random.default_rng(seed)

    def chunk(
        self,
        obs: Mapping[str, NDArray[Any]],
        stream: np.random.Generator,
        committed: Committed | None = None,
        previous: Previous | None = None,
    ) -> NDArray[Any]:
        """(h, a) actions."""
        noise = self._scale * self.engine.noise(1, stream)
        told = () if committed is None else (committed.action, committed.length)
        self.evaluations += self.engine.nfe
        chunk: NDArray[Any] = self.engine.act({key: value[None] for key, value in obs.items()}, noise, *told)[0]
        return chunk


class PolicySource:
    """Chunks of a policy of torch, one row at a time; see :class:`ChunkSource`.

    Args:
        policy: acts.
        nfe: network evaluations per chunk; the contract's unless given.
        noise_scale: factor of the noise.
        device: where it lives; that of its parameters unless given.

    """

    def __init__(self, policy: Any, nfe: int | None, noise_scale: float, device: torch.device | str | None) -> None:
        import torch

        self.policy, self._nfe, self._scale, self._torch = policy, nfe, noise_scale, torch
        if device is None:
            parameters = getattr(policy, "parameters", tuple)
            device = next((value.device for value in parameters()), "cpu")
        self._device = torch.device(device)
        if noise_scale != 1 and not hasattr(policy, "noise"):
            raise ConfigError(f"noise_scale={noise_scale} with a {type(policy).__name__}, whose noise has no scale")

    @property
    def contract(self) -> Contract:
        """The policy's."""
        contract: Contract = self.policy.contract
        return contract

    @property
    def prefix(self) -> int:
        """Most committed actions that it continues."""
        return int(getattr(self.policy, "prefix", self.contract.chunk - 1))

    @property
    def continues(self) -> bool:
        """Whether its decisions depend on the previous chunk."""
        return bool(getattr(self.policy, "continues", False))

    @property
    def evaluations(self) -> int:
        """Network evaluations so far."""
        return int(self.policy.evaluations)

    def stream(self, seed: int) -> torch.Generator:
        """A generator of torch, where the policy lives."""
        return self._torch.Generator(device=self._device).manual_seed(seed)

    def chunk(
        self,
        obs: Mapping[str, NDArray[Any]],
        stream: torch.Generator,
        committed: Committed | None = None,
        previous: Previous | None = None,
    ) -> NDArray[Any]:
        """(h, a) actions."""
        told: dict[str, Any] = {}
        if committed is not None:
            told["committed"] = Committed(*map(self._placed, committed))
        if previous is not None:
            told["previous"] = Previous(*map(self._placed, previous))
        seen = {key: self._placed(value[None]) for key, value in obs.items()}
        if self._scale == 1:
            chunk = self.policy.act(seen, stream, self._nfe, **told)
        else:
            noise, nfe = self._scale * self.policy.noise(1, stream), self._nfe or self.contract.nfe
            chunk = self.policy.act_from(seen, noise, nfe, generator=stream, **told)
        found: NDArray[Any] = chunk[0].cpu().numpy()
        return found

    def _placed(self, value: NDArray[Any]) -> torch.Tensor:
        return self._torch.from_numpy(value).to(self._device)
