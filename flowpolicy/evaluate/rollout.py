"""Seeded rollouts of a policy in a vectorised environment, one outcome per planned episode."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowpolicy.core.errors import ActionError, ContractError, DataWarning, EvaluationError
from flowpolicy.core.protocols import Observation, VecEnv
from flowpolicy.core.spec import ImageSpec
from flowpolicy.data.thumbnails import swapped_cameras
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.traces import Trace
from flowpolicy.policy.engines.engine import Engine
from flowpolicy.policy.session import ActingPolicy, Execution, Session

if TYPE_CHECKING:
    import torch


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
    trace: Trace | None = None
    """Actions, states and decisions of every step, if recorded."""

    @property
    def success(self) -> bool:
        """Whether the environment called success at any step."""
        return self.success_step is not None

    @property
    def policy_seconds(self) -> float:
        """Wall time spent in the policy."""
        return sum(self.decision_seconds)


def rollout(
    policy: ActingPolicy | Engine,
    env: VecEnv,
    plan: EvaluationPlan,
    *,
    nfe: int | None = None,
    progress: Callable[[Episode], None] | None = None,
    record: Collection[int] = (),
    noise_scale: float = 1.0,
    device: torch.device | str | None = None,
    execution: Execution = "naive",
    most_committed: int | None = None,
    allow_render_mismatch: bool = False,
    instruction: str = "",
) -> list[Episode]:
    """Play every episode of ``plan`` and return the outcomes in plan order.

    Args:
        policy: decides, or an engine does; its contract says how many observations it sees and how many actions are
            executed.
        env: any number of slots; a slot is refilled from the plan as soon as its episode ends.
        plan: initial states and policy seeds.
        nfe: network evaluations per chunk; the contract's number, or the engine's, unless given.
        progress: called with every episode as it ends.
        record: positions in the plan whose frames and traces are kept.
        noise_scale: factor of the policy's initial noise: 1 acts by the law that was learned, 0 by its middle.
        device: where the policy lives; what its parameters say unless given.
        execution: what to do about delayed observations (:mod:`flowpolicy.envs.delay`).
        most_committed: rows that may be committed in real time; as many as the policy can continue unless given.
        allow_render_mismatch: act on pictures that are drawn otherwise than in training.
        instruction: what is to be done, for policies that were trained on several instructions.

    Raises:
        ContractError: the environment is not the one of the policy's contract or of the plan.
        ConfigError: which of its instructions the policy is to follow is not said, or it knows no such one.
        EvaluationError: a non-finite action or reward, an action of the wrong shape, or a number of
            network evaluations per chunk other than the one asked for.

    """
    policy.contract.require(
        env.spec,
        "the environment",
        "evaluate in the environment the policy was trained for",
        allow_render_mismatch=allow_render_mismatch,
    )
    if plan.env_id != env.spec.env_id:
        raise ContractError(
            f"the plan is for '{plan.env_id}' and the environment is '{env.spec.env_id}'",
            fix="make a plan for this environment",
        )
    session = Session(
        policy,
        nfe=nfe,
        noise_scale=noise_scale,
        execution=execution,
        most_committed=most_committed,
        device=device,
        instruction=instruction,
    )
    session.require_told(env.spec.observation)
    task = _Task(session, plan, frozenset(record))
    finished: dict[int, Episode] = {}
    waiting = iter(range(len(plan.indices)))
    active: dict[int, _Running] = {}
    _warn_of_views(policy.contract.spec.images, _fill(active, range(env.num_envs), waiting, env, task))
    while active:
        ended = _advance(active, env)
        for slot in ended:
            running = active.pop(slot)
            finished[running.position] = running.outcome()
            if progress is not None:
                progress(finished[running.position])
        _fill(active, ended, waiting, env, task)
    return [finished[position] for position in range(len(plan.indices))]


class _Task(NamedTuple):
    """What all episodes of a rollout have in common."""

    session: Session
    plan: EvaluationPlan
    record: frozenset[int]


def _warn_of_views(images: Mapping[str, ImageSpec], shown: Sequence[Observation]) -> None:
    """Warn where the first pictures look like those of another camera in training, or of none."""
    seen = {key: np.stack([obs[key] for obs in shown]) for key in images if shown}
    for line in swapped_cameras(images, seen):
        warnings.warn(line, DataWarning, stacklevel=3)


def _fill(
    active: dict[int, _Running], free: Iterable[int], waiting: Iterator[int], env: VecEnv, task: _Task
) -> list[Observation]:
    """Start the next episodes of the plan in the ``free`` slots; what they begin with, name -> (*shape)."""
    # zip asks the slots first: when they run out, no position of the plan is lost.
    starting = list(zip(free, waiting, strict=False))
    if not starting:
        return []
    slots = [slot for slot, _ in starting]
    obs = env.reset([task.plan.indices[position] for _, position in starting], slots)
    active |= {slot: _Running(task, position) for slot, position in starting}
    pictures = _look(active, slots, obs, env)
    for row, slot in enumerate(slots):
        running = active[slot]
        running.observe(obs, row, pictures[slot])
        if running.recorded:
            running.frames.append(env.render(slot))
    return [{key: value[row] for key, value in obs.items()} | pictures[slot] for row, slot in enumerate(slots)]


def _advance(active: dict[int, _Running], env: VecEnv) -> list[int]:
    """One environment step of every active slot; returns the slots whose episodes ended."""
    slots = list(active)
    step = env.step(np.stack([active[slot].act() for slot in slots]), slots)
    ended = [slot for slot, over in zip(slots, step.terminated | step.truncated, strict=True) if over]
    pictures = _look(active, [slot for slot in slots if slot not in ended], step.obs, env)
    for row, slot in enumerate(slots):
        running = active[slot]
        running.take(float(step.reward[row]), bool(step.success[row]))
        if running.recorded:
            running.frames.append(env.render(slot))
        if slot in pictures:
            running.observe(step.obs, row, pictures[slot], 0 if step.age is None else int(step.age[row]))
    return ended


def _look(
    active: Mapping[int, _Running], slots: Sequence[int], obs: Observation, env: VecEnv
) -> dict[int, Observation]:
    """Slot -> its pictures, name -> (h, w, c): taken only where a decision will see them and ``obs`` lacks them."""
    pictures: dict[int, Observation] = {slot: {} for slot in slots}
    looking = [slot for slot in slots if active[slot].lacks(obs)]
    if looking:
        taken = env.look(looking)
        for row, slot in enumerate(looking):
            pictures[slot] = {key: value[row] for key, value in taken.items()}
    return pictures


class _Running:
    """One episode being played: what acts in it, and its tallies."""

    def __init__(self, task: _Task, position: int) -> None:
        self.position, self.nfe, self.recorded = position, task.session.nfe, position in task.record
        self.index, self.policy_seed = task.plan.indices[position], task.plan.policy_seeds[position]
        self.acting = task.session.begin(self.policy_seed)
        streams = task.session.contract.spec.observation
        self.images = task.session.contract.spec.images.keys()
        self.states = {key: each.shape for key, each in streams.items() if each.kind == "state" and not each.words}
        self.success_step: int | None = None
        self.return_, self.length = 0.0, 0
        self.frames: list[np.ndarray] = []
        self.seen: Observation = {}
        self.rows: list[tuple[Observation, np.ndarray, float]] = []
        """State, action and reward of every step, if recorded."""
        self.decisions: list[int] = []

    def lacks(self, obs: Observation) -> bool:
        """Whether a decision will see pictures that ``obs`` does not hold."""
        return self.acting.looks and not self.images <= obs.keys()

    def observe(self, obs: Observation, row: int, pictures: Observation, age: int = 0) -> None:
        """Show an observation, taken ``age`` actions ago."""
        seen = {key: value[row] for key, value in obs.items()} | pictures
        self.acting.see(seen, age)
        if self.recorded:
            self.seen = {key: np.array(seen[key]) for key in self.states if key in seen}

    def act(self) -> np.ndarray:
        """(a,) the next action."""
        decided = len(self.acting.decision_seconds)
        try:
            action = self.acting.act()
        except ActionError as error:
            raise EvaluationError(f"{self._where()}: {error.what}", expected=error.expected, fix=error.fix) from error
        excess = self.acting.evaluations - self.nfe * len(self.acting.decision_seconds)
        if excess:
            raise EvaluationError(
                f"{self._where()}: the policy used {self.nfe + excess} network evaluations for a chunk",
                expected=f"{self.nfe}, as asked for",
            )
        if self.recorded:
            self.decisions += [self.length] * (len(self.acting.decision_seconds) > decided)
            self.rows.append((self.seen, action.copy(), 0.0))
        return action

    def take(self, reward: float, success: bool) -> None:
        """Count one step's reward and success."""
        self.length += 1
        if not np.isfinite(reward):
            raise EvaluationError(f"{self._where()}: the reward is {reward}", expected="a finite number")
        self.return_ += reward
        if self.recorded:
            self.rows[-1] = (*self.rows[-1][:2], reward)
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
            chunks=len(self.acting.decision_seconds),
            evaluations=self.acting.evaluations,
            decision_seconds=tuple(self.acting.decision_seconds),
            stale=self.acting.stale,
            frames=tuple(self.frames),
            trace=self._trace() if self.recorded else None,
        )

    def _trace(self) -> Trace:
        missing = {key: np.full(shape, np.nan) for key, shape in self.states.items()}
        columns = {
            key: np.stack([np.ravel(seen.get(key, missing[key])) for seen, _, _ in self.rows]) for key in self.states
        }
        actions, rewards = (np.array([row[part] for row in self.rows], dtype=np.float64) for part in (1, 2))
        return Trace(actions, columns, rewards, tuple(self.decisions))

    def _where(self) -> str:
        return f"episode {self.position} (initial state {self.index}), step {self.length}"
