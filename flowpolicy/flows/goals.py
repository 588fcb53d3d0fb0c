"""Goals that a chunk of actions should meet, stated as linear equations: ``a[-1] = 0; sum a[:, 2] = 0.4``.

``a[i, j]`` is number j of action i, counted and sliced as in Python; ``a[i]`` is the whole action. A slice states one
equation per entry unless ``sum`` or ``mean`` comes before it. Terms may have factors and be added; the right side is
one number, or one for each equation: ``a[0] = 0.1, -0.2``; ``0.5 a[3, 0] - a[2, 0] = 0``. Semicolons separate
equations.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError

_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
_INDEX = r"-?\d+|-?\d*\s*:\s*-?\d*"
_TERM = re.compile(
    rf"\s*([+-]?)\s*({_NUMBER})?\s*\*?\s*(sum|mean)?\s*a\s*\[\s*({_INDEX})\s*(?:,\s*({_INDEX})\s*)?\]\s*"
)
_EXAMPLE = "for example 'a[-1] = 0' or 'sum a[:, 0] = 0.4; a[:, 2] = 1'"
_UNMET = 1e-4
_ROUNDING = 1e-9
_NO_WAY = 1e-7

AT_REST = "a[-1] = 0"
"""The goal unless one is stated: the chunk ends with an action of zero."""


class Goal(NamedTuple):
    """``matrix @ chunk = value`` for flat chunks of d numbers."""

    matrix: Float[Tensor, "m d"]
    value: Float[Tensor, " m"]

    def rescaled(self, scale: Float[Tensor, " a"], offset: Float[Tensor, " a"]) -> Goal:
        """The goal for chunks ``(chunk - offset) * scale``."""
        repeats = self.matrix.shape[1] // len(scale)
        wide, shift = scale.to(self.matrix).repeat(repeats), offset.to(self.matrix).repeat(repeats)
        return Goal(self.matrix / wide, self.value - self.matrix @ shift)

    def gap(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The shortest way from the set of chunks that meet the goal to each chunk.

        It is the gradient of half the squared distance, whatever factors the equations are written with.
        """
        flat = chunk.flatten(1)
        a, b = self.matrix.to(flat), self.value.to(flat)
        gap: Tensor = (flat @ a.mT - b) @ torch.linalg.pinv(a).mT
        return gap.view_as(chunk)

    def cost(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, " b"]:
        """Half the squared distance to the chunks that meet the goal."""
        return 0.5 * self.gap(chunk).flatten(1).square().sum(1)


def read_goal(text: str, steps: int, size: int) -> Goal:
    """The goal for chunks of ``steps`` actions with ``size`` numbers each, in float64.

    Raises:
        ConfigError: no such language, an index outside the chunk, or equations that exclude each other.

    """
    return _read(text, steps, size)


@functools.lru_cache(maxsize=64)
def _read(text: str, steps: int, size: int) -> Goal:
    entries = torch.arange(steps * size).reshape(steps, size)
    matrix: list[Tensor] = []
    value: list[float] = []
    for equation in (part.strip() for part in text.split(";") if part.strip()):
        rows, numbers = _equation(equation, entries)
        matrix.append(rows)
        value += numbers
    if not matrix:
        raise ConfigError("an empty goal", expected=f"equations of the chunk a, {_EXAMPLE}")
    a, b = torch.cat(matrix), torch.tensor(value, dtype=torch.float64)
    if torch.linalg.matrix_rank(torch.cat([a, b.unsqueeze(1)], dim=1)) > torch.linalg.matrix_rank(a):
        raise ConfigError(f"the goal '{text}' contradicts itself", expected="equations that hold together")
    return Goal(a, b)


def _equation(text: str, entries: Tensor) -> tuple[Float[Tensor, "n d"], list[float]]:
    """Rows and right sides of one equation."""
    left, equals, right = text.partition("=")
    rows: Tensor | None = None
    position = 0
    while position < len(left):
        match = _TERM.match(left, position)
        if match is None or (position and not match[1]):
            raise ConfigError(f"the goal '{text}'", expected=f"FACTOR a[ROW, COLUMN] + ... = NUMBER, {_EXAMPLE}")
        term = _term(match, text, entries)
        if rows is not None and len(rows) != len(term) and 1 not in (len(rows), len(term)):
            raise ConfigError(f"the goal '{text}' adds {len(rows)} and {len(term)} numbers", expected="as many of each")
        rows = term if rows is None else rows + term
        position = match.end()
    try:
        numbers = [float(word) for word in right.split(",")]
    except ValueError:
        numbers = []
    if not equals or rows is None or len(numbers) not in (1, len(rows)):
        raise ConfigError(f"the goal '{text}'", expected=f"one number behind '=', or one per equation, {_EXAMPLE}")
    return rows, numbers * (len(rows) if len(numbers) == 1 else 1)


def _term(match: re.Match[str], text: str, entries: Tensor) -> Float[Tensor, "n d"]:
    factor = float(match[2] or 1.0) * (-1.0 if match[1] == "-" else 1.0)
    picked = entries
    for axis, word in enumerate((match[4], match[5])):
        if word is None:
            continue
        length = entries.shape[axis]
        if ":" in word:
            first, last = (int(end) if end.strip() else None for end in word.replace(" ", "").split(":"))
            which = list(range(*slice(first, last).indices(length)))
        else:
            which = [int(word) % length] if -length <= int(word) < length else []
        if not which:
            raise ConfigError(
                f"the goal '{text}': index '{word}' is outside",
                expected=f"chunks of {entries.shape[0]} actions with {entries.shape[1]} numbers",
            )
        picked = picked.index_select(axis, torch.tensor(which))
    rows = torch.eye(entries.numel(), dtype=torch.float64)[picked.flatten()]
    if match[3]:
        rows = rows.sum(0, keepdim=True) if match[3] == "sum" else rows.mean(0, keepdim=True)
    return factor * rows


def project(
    chunk: Float[Tensor, "b h a"], goal: Goal, spread: Float[Tensor, "#b d d"] | None = None, limit: float = 1.0
) -> Float[Tensor, "b h a"]:
    """The chunks within +-``limit`` that meet the goal, moved the least: most where they are least certain.

    ``a - S A' (A S A')^-1 (A a - b)`` (ProbConserv, arXiv 2302.11002), which turns samples of N(mu, S) into
    samples of its conditional law. Where that would leave the limits, the exact solution of the quadratic programme
    ``least |x - a|_{S^-1}^2 with A x = b, |x| <= limit``.

    Args:
        chunk: within the limits.
        goal: for flat chunks.
        spread: covariance S of every row; the identity unless given.
        limit: of every number; inf for none.

    Raises:
        ConfigError: no chunk within the limits meets the goal.

    """
    flat = chunk.flatten(1).double()
    a, b = goal.matrix.to(flat), goal.value.to(flat)
    metric = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device).unsqueeze(0)
    metric = (metric if spread is None else spread.double()).expand(len(flat), -1, -1)
    gain = metric @ a.mT @ torch.linalg.pinv(a @ metric @ a.mT, hermitian=True)
    moved = flat - (gain @ (flat @ a.mT - b).unsqueeze(2)).squeeze(2)
    for row in (moved.abs() > limit + _ROUNDING).any(1).nonzero().flatten().tolist():
        moved[row] = _within(moved[row], a, metric[row], limit)
    unmet = float((moved @ a.mT - b).abs().max())
    if unmet > _UNMET * max(1.0, float(b.abs().max())):
        raise _out_of_reach(f"{unmet:.2g} of it is left")
    found: Tensor = moved.clamp(-limit, limit).to(chunk.dtype).view_as(chunk)
    return found


def _within(
    point: Float[Tensor, " d"],
    matrix: Float[Tensor, "m d"],
    metric: Float[Tensor, "d d"],
    limit: float,
    slack: float = 0.0,
) -> Float[Tensor, " d"]:
    """The nearest point within the limits from which the equations have the value that they have at ``point``.

    ``point + Z z`` has it for every z, with the columns of Z orthonormal in the metric; the least |z| within the
    limits is a least-distance programme, which one problem of non-negative least squares solves exactly (Lawson and
    Hanson 1974, chapter 23): its residual is zero where the limits cannot be kept.
    """
    from scipy.optimize import nnls

    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.clamp(min=0).sqrt()
    _, sizes, right = torch.linalg.svd(matrix @ root, full_matrices=True)
    rank = int((sizes > sizes.max().clamp(min=_ROUNDING) * _ROUNDING).sum())
    free = root @ right[rank:].mT
    room = torch.cat([limit + slack - point, limit + slack + point])  # above and below
    system = torch.cat([torch.cat([-free, free]).mT, -room.unsqueeze(0)]).double().cpu()
    wanted = torch.zeros(len(system), dtype=system.dtype)
    wanted[-1] = 1.0
    pull, residual = nnls(system.numpy(), wanted.numpy(), maxiter=30 * system.shape[1])
    if residual < _NO_WAY:
        if slack:
            raise _out_of_reach("its equations and the limits exclude each other")
        return _within(point, matrix, metric, limit, slack=_UNMET)  # a goal on the limits, but for rounding
    rest = (system @ torch.from_numpy(pull)).to(point)
    nearest: Tensor = point - free @ (rest[:-1] / (rest[-1] - 1.0))
    return nearest


def _out_of_reach(why: str) -> ConfigError:
    return ConfigError(
        f"no chunk within the limits of the actions meets the goal: {why}",
        expected="a goal that actions of the training data's range can meet",
    )
