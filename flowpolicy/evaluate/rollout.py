"""Seeded rollouts of a policy in a vectorised environment, one outcome per planned episode."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from flowpolicy.core.errors import ContractError, EvaluationError
from flowpolicy.core.protocols import Observation, VecEnv
from flowpolicy.core.spec import Contract
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.history import ObservationHistory
from flowpolicy.policy.previous import Previous
from flowpolicy.policy.queue import ChunkQueue


class ActingPolicy(Protocol):
    """What a rollout needs of :class:`flowpolicy.policy.policy.Policy`."""

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted where the network is called."""

    @property
    def contract(self) -> Contract:
        """What the policy was trained for."""

    def act(self, obs: dict[str, Tensor], generator: torch.Generator, nfe: int | None = None) -> Tensor:
        """(b, h, a) actions in environment units for observations name -> (b, o, *shape).

        With the execution 'real_time' it is given ``committed=`` too (:class:`flowpolicy.policy.committed.Committed`),
        and ``previous=`` (:class:`flowpolicy.policy.previous.Previous`) where it has a true attribute ``continues``.
        """


Execution = Literal["naive", "aligned", "real_time"]
"""What is done with a chunk whose observation is ``age`` actions old: 'naive' executes it from its first row on, as
if no time had passed; 'aligned' skips ``age`` rows; 'real_time' also tells the policy what they were."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """Outcome of one planned episode."""

    index: int
    """Initial-state index."""
    policy_seed: int
    """Seed of the policy's random stream."""
    success_step: int | None
    """First step, counted from 1, after which the environment called success; None if it never did."""
    return_: float
    """Sum of the rewards."""
    length: int
    """Environment steps played."""
    chunks: int
    """Decisions of the policy."""
    evaluations: int
    """Network evaluations, measured."""
    decision_seconds: tuple[float, ...]
    """Wall time of each decision: from the observation in memory to the actions in memory."""
    stale: int = 0
    """Decisions on an observation too old for the chunk or, in real time, for the trained prefix."""
    frames: tuple[np.ndarray, ...] = ()
    """(height, width, 3) uint8 pictures of the initial state and of every step, if recorded."""

    @property
    def success(self) -> bool:
        """Whether the environment called success at any step."""
        return self.success_step is not None

    @property
    def policy_seconds(self) -> float:
        """Wall time spent in the policy."""
        return sum(self.decision_seconds)


def rollout(
    policy: ActingPolicy,
    env: VecEnv,
    plan: EvaluationPlan,
    *,
    nfe: int | None = None,
    progress: Callable[[Episode], None] | None = None,
    record: Collection[int] = (),
    device: torch.device | str = "cpu",
    execution: Execution = "naive",
    most_committed: int | None = None,
) -> list[Episode]:
    """Play every episode of ``plan`` and return the outcomes in plan order.

    Args:
        policy: decides; its contract says how many observations it sees and how many actions are executed.
        env: any number of slots; a slot is refilled from the plan as soon as its episode ends.
        plan: initial states and policy seeds.
        nfe: network evaluations per chunk; the contract's number unless given.
        progress: called with every episode as it ends.
        record: positions in the plan whose frames are kept.
        device: where the policy lives.
        execution: what to do about delayed observations (:mod:`flowpolicy.envs.delay`).
        most_committed: rows that may be committed in real time; all but the last of a chunk unless given.

    Raises:
        ContractError: the environment is not the one of the policy's contract or of the plan.
        EvaluationError: a non-finite action or reward, an action of the wrong shape, or a number of
            network evaluations per chunk other than the one asked for.

    """
    policy.contract.require(env.spec, "the environment", "evaluate in the environment the policy was trained for")
    if plan.env_id != env.spec.env_id:
        raise ContractError(
            f"the plan is for '{plan.env_id}' and the environment is '{env.spec.env_id}'",
            fix="make a plan for this environment",
        )
    most = policy.contract.chunk - 1 if most_committed is None else most_committed
    task = _Task(policy.contract, plan, frozenset(record), nfe, torch.device(device), execution, most)
    finished: dict[int, Episode] = {}
    waiting = iter(range(len(plan.indices)))
    active: dict[int, _Running] = {}
    _fill(active, range(env.num_envs), waiting, env, task)
    while active:
        for running in active.values():
            if running.queue.empty:
                running.decide(policy)
        ended = _advance(active, env)
        for slot in ended:
            running = active.pop(slot)
            finished[running.position] = running.outcome()
            if progress is not None:
                progress(finished[running.position])
        _fill(active, ended, waiting, env, task)
    return [finished[position] for position in range(len(plan.indices))]


@dataclasses.dataclass(frozen=True)
class _Task:
    """What all episodes of a rollout have in common."""

    contract: Contract
    plan: EvaluationPlan
    record: frozenset[int]
    nfe: int | None
    device: torch.device
    execution: Execution
    most_committed: int


def _fill(active: dict[int, _Running], free: Iterable[int], waiting: Iterator[int], env: VecEnv, task: _Task) -> None:
    """Start the next episodes of the plan in the ``free`` slots."""
    # zip asks the slots first: when they run out, no position of the plan is lost.
    starting = list(zip(free, waiting, strict=False))
    if not starting:
        return
    obs = env.reset([task.plan.indices[position] for _, position in starting], [slot for slot, _ in starting])
    for row, (slot, position) in enumerate(starting):
        running = active[slot] = _Running(task, position)
        running.observe(obs, row)
        if running.recorded:
            running.frames.append(env.render(slot))


def _advance(active: dict[int, _Running], env: VecEnv) -> list[int]:
    """One environment step of every active slot; returns the slots whose episodes ended."""
    slots = list(active)
    step = env.step(torch.stack([active[slot].queue.pop() for slot in slots]).numpy(), slots)
    ended = []
    for row, slot in enumerate(slots):
        running = active[slot]
        running.take(float(step.reward[row]), bool(step.success[row]))
        if running.recorded:
            running.frames.append(env.render(slot))
        if step.terminated[row] or step.truncated[row]:
            ended.append(slot)
        else:
            running.observe(step.obs, row, 0 if step.age is None else int(step.age[row]))
    return ended


class _Running:
    """One episode being played: its observation history, chunk queue, random stream and tallies."""

    def __init__(self, task: _Task, position: int) -> None:
        self.task, self.position, self.recorded = task, position, position in task.record
        self.index, self.policy_seed = task.plan.indices[position], task.plan.policy_seeds[position]
        self.generator = torch.Generator(device=task.device).manual_seed(self.policy_seed)
        self.queue = ChunkQueue(task.contract.execute)
        self.history = ObservationHistory(task.contract)
        self.success_step: int | None = None
        self.return_, self.length, self.evaluations = 0.0, 0, 0
        self.age = self.stale = 0
        self.decision_seconds: list[float] = []
        self.frames: list[np.ndarray] = []

    def observe(self, obs: Observation, row: int, age: int = 0) -> None:
        """Append an observation that is new."""
        repeated = bool(len(self.history)) and age == self.age + 1
        self.age = age
        if repeated:
            return
        self.history.append({key: value[row] for key, value in obs.items()})

    def decide(self, policy: ActingPolicy) -> None:
        """Ask the policy for a chunk.

        The policy sees the row of this episode alone. A batched matrix product rounds differently with
        the number of rows, and a contact-rich simulation amplifies the last bit: with one row per call
        an episode comes out bit for bit the same however many slots and workers play beside it.
        """
        contract, nfe = self.task.contract, self.task.nfe
        counted, start = policy.evaluations, time.perf_counter()
        obs = {key: torch.from_numpy(rows[None]).to(self.task.device) for key, rows in self.history.stacked().items()}
        chunk = self._ask(policy, obs)[0].cpu()
        self.decision_seconds.append(time.perf_counter() - start)
        used, promised = policy.evaluations - counted, contract.nfe if nfe is None else nfe
        if used != promised:
            raise EvaluationError(
                f"{self._where()}: the policy used {used} network evaluations for a chunk",
                expected=f"{promised}, as asked for",
            )
        self.evaluations += used
        self._check(chunk)
        self.queue.push(chunk, 0 if self.task.execution == "naive" else self.age)

    def _ask(self, policy: ActingPolicy, obs: dict[str, Tensor]) -> Tensor:
        task, options = self.task, self._memory(policy)
        if task.execution == "naive":
            return policy.act(obs, self.generator, task.nfe, **options)
        bridged = task.contract.chunk - 1 if task.execution == "aligned" else task.most_committed
        self.stale += self.age > bridged
        if task.execution == "aligned":
            return policy.act(obs, self.generator, task.nfe, **options)
        committed = self.queue.committed(self.age, task.contract.chunk, task.most_committed)
        if committed is not None:
            committed = Committed(*(part.to(task.device) for part in committed))
        chunk: Tensor = policy.act(obs, self.generator, task.nfe, committed=committed, **options)  # type: ignore[call-arg]
        return chunk

    def _memory(self, policy: ActingPolicy) -> dict[str, Any]:
        """What a policy is told besides that continues its previous chunk."""
        if not getattr(policy, "continues", False):
            return {}
        previous = self.queue.previous(self.task.contract.chunk, 0 if self.task.execution == "naive" else self.age)
        if previous is not None:
            previous = Previous(*(part.to(self.task.device) for part in previous))
        return {"previous": previous}

    def take(self, reward: float, success: bool) -> None:
        """Count one step's reward and success."""
        self.length += 1
        if not np.isfinite(reward):
            raise EvaluationError(f"{self._where()}: the reward is {reward}", expected="a finite number")
        self.return_ += reward
        if success and self.success_step is None:
            self.success_step = self.length

    def outcome(self) -> Episode:
        """The finished episode."""
        return Episode(
            index=self.index,
            policy_seed=self.policy_seed,
            success_step=self.success_step,
            return_=self.return_,
            length=self.length,
            chunks=len(self.decision_seconds),
            evaluations=self.evaluations,
            decision_seconds=tuple(self.decision_seconds),
            stale=self.stale,
            frames=tuple(self.frames),
        )

    def _check(self, chunk: Tensor) -> None:
        wanted = (self.task.contract.chunk, self.task.contract.spec.action.size)
        if tuple(chunk.shape) != wanted:
            raise EvaluationError(f"{self._where()}: a chunk of shape {tuple(chunk.shape)}", expected=str(wanted))
        if not bool(torch.isfinite(chunk).all()):
            raise EvaluationError(
                f"{self._where()}: the policy's action holds NaN or infinity",
                fix="look at the training curves for a loss that blew up, or evaluate an earlier checkpoint",
            )

    def _where(self) -> str:
        return f"episode {self.position} (initial state {self.index}), step {self.length}"
