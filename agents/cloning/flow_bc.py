"""Flow behaviour cloning: velocity matching, many network evaluations per chunk.

Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003). One update, for a chunk ``a`` and its
observation, noise at t = 0 and data at t = 1::

    e ~ N(0, I);  t uniform on [0, 1)
    loss = mean |network((1 - t) e + t a, t, encoder(observation)) - (a - e)|^2

and a solver acts: it integrates dx/dt = network(x, t, c) from x = e at t = 0 to the chunk at t = 1.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.core.references import Reference


@register_config("flow_bc")
@dataclasses.dataclass(frozen=True)
class FlowBC(Flow):
    """Flow behaviour cloning: the default value of every axis."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Flow Matching for Generative Modeling", "2210.02747"),
        Reference("Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", "2209.03003"),
    )
