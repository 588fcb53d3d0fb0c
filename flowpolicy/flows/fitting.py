"""Solvers and schedules that are fitted to one field: BOSS and OLSS (docs/methods/flow-laboratory.md#fitted-solvers).

Both look at the same thing: the states and velocities of many finely integrated trajectories.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.solvers import Dynamics

RIDGE = 1e-9
"""Share of the mean square of the columns that is added to their Gram matrix: rounding, not shrinkage."""


class Trajectories(NamedTuple):
    """Finely integrated flows."""

    times: Float64[Tensor, " k"]
    """Times of the states."""
    states: Float[Tensor, "k m d"]
    """States of m trajectories."""
    slopes: Float[Tensor, "n m d"]
    """Velocities at all states but the last."""


def trajectories(flow: Dynamics, noise: Float[Tensor, "m *d"], steps: int = 64) -> Trajectories:
    """Integrate with Euler's method in many equal steps."""
    x, states, slopes = noise, [noise], []
    for k in range(steps):
        slopes.append(flow.at(x, k / steps))
        x = x + slopes[-1] / steps
        states.append(x)
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return Trajectories(times, torch.stack(states).flatten(2), torch.stack(slopes).flatten(2))


def step_costs(paths: Trajectories) -> Float64[Tensor, "k k"]:
    """Mean squared error of one Euler step from node i to node j > i; infinite elsewhere (BOSS, arXiv 2312.16414)."""
    count = len(paths.times)
    cost = torch.full((count, count), float("inf"), dtype=torch.float64)
    for i in range(count - 1):
        ahead = (paths.times[i + 1 :] - paths.times[i]).to(paths.states).reshape(-1, 1, 1)
        error = paths.states[i + 1 :] - paths.states[i] - ahead * paths.slopes[i]
        cost[i, i + 1 :] = error.double().square().sum(2).mean(1)
    return cost


def bellman(cost: Float64[Tensor, "k k"], steps: int) -> tuple[int, ...]:
    """Nodes of the cheapest path from the first to the last node in exactly ``steps`` steps.

    ``J_k(i) = min_j C_ij + J_{k-1}(j)`` (BOSS, arXiv 2312.16414, section 3.2).

    Raises:
        ConfigError: more steps than there are nodes.

    """
    count = len(cost)
    if not 1 <= steps < count:
        raise ConfigError(f"{steps} steps on {count} nodes", expected=f"between 1 and {count - 1}")
    rest = torch.full((count,), float("inf"), dtype=cost.dtype)
    rest[-1] = 0
    choices = []
    for _ in range(steps):
        rest, choice = (cost + rest).min(1)
        choices.append(choice)
    nodes = [0]
    for choice in reversed(choices):
        nodes.append(int(choice[nodes[-1]]))
    return tuple(nodes)


def fit_subspace(paths: Trajectories, nodes: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Least squares of every node's state on the noise and the velocities at the nodes before (OLSS, arXiv 2305.14677).

    Args:
        paths: finely integrated trajectories.
        nodes: rising indices into them, the first and the last state included.

    Returns:
        Row k: factor of the noise, then of the velocities at the nodes 0 ... k; gives the state at node k + 1.

    """
    noise = paths.states[0].double().flatten()
    columns, rows = [noise], []
    for node, after in itertools.pairwise(nodes):
        columns.append(paths.slopes[node].double().flatten())
        design, target = torch.stack(columns, dim=1), paths.states[after].double().flatten()
        gram = design.T @ design
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        start = _euler_like(paths.times, nodes[: len(columns)])
        # The ridge pulls towards a step that follows the last velocity, not towards 0.
        rows.append(start + torch.linalg.solve(gram, design.T @ (target - design @ start)))
    return tuple(tuple(row.tolist()) for row in rows)


def _euler_like(times: Float64[Tensor, " n"], nodes: tuple[int, ...]) -> Float64[Tensor, " k"]:
    """Coefficients of Euler's method on the nodes: 1 for the noise, the lengths of the steps for the velocities."""
    ends = times[list(nodes)]
    return torch.cat([torch.ones(1, dtype=torch.float64), ends[1:] - ends[:-1]])
