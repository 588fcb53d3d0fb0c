"""The choice among candidates in NumPy: :class:`flowpolicy.nets.critic.Critic`, its members one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from flowpolicy.nets.constants import NORM_EPS
from flowpolicy.policy.engines.tape import GAIN, Rows, Tape


def best(
    rows: Tape,
    all_rows: Tape,
    config: Mapping[str, Any],
    weights: Mapping[str, Float[np.ndarray, "..."]],
    flat: Rows,
    actions: Rows,
) -> Rows:
    """Record the valuation of all candidates and the pick of the best of every row.

    Args:
        rows: tape with one row per observation.
        all_rows: the same tape with one row per candidate.
        config: of the critic.
        weights: ``critic.*``.
        flat: observations.
        actions: candidates; those of a row follow each other.

    """
    candidates = all_rows.rows // rows.rows
    values = np.zeros((config["members"], all_rows.rows), np.float32)
    for member in range(config["members"]):
        hidden = actions
        for layer in range(config["depth"] + 1):
            prefix = f"critic.layers.{layer}." if layer < config["depth"] else "critic.head."
            linear = f"{prefix}linear." if layer < config["depth"] else prefix
            weight, bias = weights[linear + "weight"][member].T, weights[linear + "bias"][member, 0]
            if layer < config["depth"]:
                weight, bias = -GAIN * weight, -GAIN * bias
            if layer == 0:
                observed = rows.product(flat, weight[:, : flat.shape[1]])
                repeated = all_rows.buffer(len(weight))
                rows.call(np.copyto, repeated.reshape(rows.rows, candidates, -1), observed[:, None])
                hidden = all_rows.add(all_rows.product(actions, weight[:, flat.shape[1] :]), repeated)
            else:
                hidden = all_rows.product(hidden, weight)
            hidden = all_rows.add(hidden, all_rows.spread(bias), hidden)
            if layer < config["depth"]:
                hidden = all_rows.multiply(all_rows.gelu(hidden), all_rows.full(-1.0 / GAIN, len(bias)))
                if config["layer_norm"]:
                    scaling = [all_rows.spread(weights[prefix + name][member, 0]) for name in ("scale", "shift")]
                    all_rows.call(_normalise, hidden, *scaling)
        all_rows.call(np.copyto, values[member], hidden[:, 0])
    chosen = rows.buffer(actions.shape[1])
    rows.call(_pick, values, config["aggregate"], actions, chosen)
    return chosen


def _normalise(x: Rows, weight: Rows, bias: Rows) -> None:
    x -= x.mean(1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(1, keepdims=True) + NORM_EPS)
    x *= weight
    x += bias


def _pick(values: Float32[np.ndarray, "e r"], aggregate: str, actions: Rows, chosen: Rows) -> None:
    value = (values.mean(0) if aggregate == "mean" else values.min(0)).reshape(len(chosen), -1)
    per_row = actions.reshape(len(chosen), -1, actions.shape[1])
    chosen[...] = per_row[np.arange(len(chosen)), value.argmax(1)]
