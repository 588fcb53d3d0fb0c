"""Films of a policy that sees: the scene, exactly the pictures that it decided on, and the actions that came of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.protocols import VecEnv
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.rollout import Episode, rollout
from flowpolicy.evaluate.video import save_video
from flowpolicy.policy import Policy

_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (90, 90, 90))
"""One for each dimension of an action, in turn; apart for colour-blind readers (Wong 2011)."""


_GAP = 2  # pixels between parts


class _Watched:
    """A policy, and what every decision saw and gave."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.decisions: list[tuple[dict[str, NDArray[np.uint8]], NDArray[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, obs: dict[str, Any], generator: Any, nfe: int | None = None, **told: Any) -> Any:
        chunk = self._policy.act(obs, generator, nfe, **told)
        seen = {key: obs[key][0, -1].numpy().copy() for key in self._policy.contract.spec.images}
        self.decisions.append((seen, chunk[0].numpy().copy()))
        return chunk


def save_strips(policy: Policy, env: VecEnv, plan: EvaluationPlan, folder: Path, fps: float) -> list[Path]:
    """Play a plan, one episode at a time, and write a film of each to ``folder``.

    Raises:
        EvaluationError: the policy sees no pictures.
        MissingExtraError: the extra 'video' is not installed.

    """
    if not policy.contract.spec.images:
        raise EvaluationError("a policy of states alone has nothing to show", fix="eval RUN --video 3")
    paths = []
    for position, (index, seed) in enumerate(zip(plan.indices, plan.policy_seeds, strict=True)):
        watched = _Watched(policy)
        one = EvaluationPlan(plan.env_id, (index,), (seed,))
        (played,) = rollout(watched, env, one, record=(0,))
        span = policy.contract.spec.action.low, policy.contract.spec.action.high
        frames = strips(played, watched.decisions, policy.contract.execute, span)
        strip = dataclasses.replace(played, frames=tuple(frames))
        paths.append(save_video(folder, position, strip, fps, "seen"))
    return paths


def strips(
    episode: Episode,
    decisions: list[tuple[dict[str, NDArray[np.uint8]], NDArray[Any]]],
    execute: int,
    span: tuple[float, float] = (-1.0, 1.0),
) -> list[NDArray[np.uint8]]:
    """A frame per step: the scene, below each other what the last decision saw, and the actions so far.

    Args:
        episode: with frames of the scene.
        decisions: pictures (h, w, 3) by key, and the chunk (h, a) that was decided, in order.
        execute: actions of a chunk that were executed.
        span: lowest and highest action.

    """
    low, high = span
    decisions = [(seen, 2 * (chunk - low) / (high - low) - 1) for seen, chunk in decisions]
    actions = np.concatenate([chunk[:execute] for _, chunk in decisions])[: episode.length]
    height = episode.frames[0].shape[0]
    made = []
    for step, scene in enumerate(episode.frames):
        seen, chunk = decisions[min(step // execute, len(decisions) - 1)]
        side = (height - _GAP * (len(seen) - 1)) // len(seen)
        column = np.zeros((height, side, 3), np.uint8)
        for number, each in enumerate(seen.values()):
            top = number * (side + _GAP)
            column[top : top + side] = _fitted(each, side)
        trace = _trace(actions, step, chunk[min(step % execute, len(chunk)) :], (height, scene.shape[1]))
        gap = np.zeros((height, _GAP, 3), np.uint8)
        made.append(np.concatenate([scene, gap, column, gap, trace], axis=1))
    return made


def _fitted(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture (side, side, 3): every pixel as it was seen, larger."""
    rows, columns = (np.arange(side) * size // side for size in picture.shape[:2])
    return picture[rows[:, None], columns]


def _trace(actions: NDArray[Any], step: int, planned: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Actions of the steps so far, a band and a colour for each dimension, and lighter what is planned from here."""
    canvas = np.full((*size, 3), 255, np.uint8)
    bands, steps = actions.shape[1], len(actions) + len(planned)
    x = lambda row: min(int(row * size[1] / max(steps, 1)), size[1] - 1)  # noqa: E731
    for dim in range(bands):
        top, bottom = dim * size[0] // bands, (dim + 1) * size[0] // bands - 2
        canvas[(top + bottom) // 2, :] = 225
        colour = np.array(_COLOURS[dim % len(_COLOURS)], np.uint8)
        pale = (255 - (255 - colour.astype(int)) // 3).astype(np.uint8)
        for first, values, ink in ((0, actions[:step, dim], colour), (step, planned[:, dim], pale)):
            for row, value in enumerate(np.clip(values, -1, 1), start=first):
                y = round(bottom - (value + 1) / 2 * (bottom - top))
                canvas[max(y - 1, top) : y + 1, x(row) : x(row + 1) + 1] = ink
    canvas[:, x(step)] = 0
    return canvas
