"""Whose turn an episode is, where two policies play in one session: said beside the rings before it begins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from flowpolicy.core.files import replacing

TURN = "turn.json"
"""File of a session."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One episode to play."""

    index: int
    """Place in the plan: the start and the seed of the policy's noise follow from it."""
    policy: int
    """Which policy plays: 0, or 1 of two."""


def write_turn(folder: Path, episode: int, trial: Trial, noise: int) -> None:
    """Say which policy plays an episode of a session, and the seed of its noise."""
    with replacing(folder / TURN) as temporary:
        temporary.write_text(json.dumps({"episode": episode, "policy": trial.policy, "noise": noise}), encoding="utf-8")


def read_turn(folder: Path, episode: int) -> tuple[int, int | None]:
    """Which policy plays an episode, and the seed of its noise; 0 and None where nobody takes turns."""
    path = folder / TURN
    if not path.exists():
        return 0, None
    turn = json.loads(path.read_text(encoding="utf-8"))
    return (int(turn["policy"]), int(turn["noise"])) if turn["episode"] == episode else (0, None)
