"""The evaluation plan: which initial states are played, and with which policy noise.

Two policies evaluated on one plan meet the same initial states with the same random streams, so their
outcomes can be compared in pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.files import read_json, write_json
from flowpolicy.core.seed import EPISODES_PER_SEED, derive, first_planned

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Episodes to play, in order."""

    env_id: str
    """Name of the environment as its spec gives it, e.g. 'robosuite/Lift'."""
    indices: tuple[int, ...]
    """Initial-state index of each episode; the environment makes index i the same state always."""
    policy_seeds: tuple[int, ...]
    """Seed of the policy's own random stream, one per episode."""

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.policy_seeds):
            raise EvaluationError(
                f"the plan has {len(self.indices)} indices and {len(self.policy_seeds)} policy_seeds",
                expected="one policy seed per initial-state index",
            )
        if not self.indices:
            raise EvaluationError("the plan has no episodes", expected="at least one index")
        if min(*self.indices, *self.policy_seeds) < 0:
            raise EvaluationError("the plan holds a negative index or policy seed", expected="numbers from 0 on")

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the content; independent of how a file is laid out."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON values; inverse of :func:`plan_from`."""
        return {
            "schema": SCHEMA,
            "env_id": self.env_id,
            "indices": list(self.indices),
            "policy_seeds": list(self.policy_seeds),
        }


def make_plan(env_id: str, episodes: int, seed: int) -> EvaluationPlan:
    """The default plan of a seed: indices ``seed * 1_000_000 + i``, so the plans of two seeds share no initial state.

    Raises:
        EvaluationError: ``episodes`` outside [1, 1_000_000] or a negative ``seed``.

    """
    if not 1 <= episodes <= EPISODES_PER_SEED:
        raise EvaluationError(f"a plan of {episodes} episodes", expected=f"1 to {EPISODES_PER_SEED}")
    if seed < 0:
        raise EvaluationError(f"the seed of a plan is {seed}", expected="0 or more")
    indices = tuple(first_planned(seed) + i for i in range(episodes))
    return EvaluationPlan(env_id, indices, tuple(derive(seed, "evaluate", i) for i in range(episodes)))


def save_plan(path: Path, plan: EvaluationPlan) -> None:
    """Write a plan as JSON, atomically."""
    write_json(path, plan.to_json())


def load_plan(path: Path) -> EvaluationPlan:
    """Read a plan; a missing or malformed file is an error that names it."""
    return plan_from(read_json(path), str(path))


def plan_from(value: Any, where: str) -> EvaluationPlan:
    """Decode a plan from JSON values; ``where`` names their place in error messages.

    Raises:
        EvaluationError: another schema, a missing or unknown key, or a value of the wrong type.

    """
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise EvaluationError(
            f"{where} is not an evaluation plan of schema {SCHEMA}",
            expected=f'a JSON object with "schema": {SCHEMA}',
            fix="write the plan with this version of flowpolicy",
        )
    wanted = {"schema", "env_id", "indices", "policy_seeds"}
    if set(value) != wanted:
        raise EvaluationError(f"{where} has the keys {sorted(value)}", expected=f"exactly {sorted(wanted)}")
    if not isinstance(value["env_id"], str):
        raise EvaluationError(f"{where}: env_id is {value['env_id']!r}", expected="the name of an environment")
    for key in ("indices", "policy_seeds"):
        if not isinstance(value[key], list) or not all(type(item) is int for item in value[key]):
            raise EvaluationError(f"{where}: {key} is not a list of whole numbers", expected="e.g. [0, 1, 2]")
    return EvaluationPlan(value["env_id"], tuple(value["indices"]), tuple(value["policy_seeds"]))
