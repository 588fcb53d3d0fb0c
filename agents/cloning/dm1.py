"""DM1: MeanFlow with dispersive regularisation, one network evaluation per action chunk.

Zou et al. 2025 (arXiv 2510.07865) on MeanFlow (Geng et al. 2025, arXiv 2505.13447) and dispersive losses (Wang and He
2025, arXiv 2506.09027). One update, for a chunk ``a`` and its observation, noise at t = 0 and data at t = 1::

    e ~ N(0, I);  s <= t drawn in pairs, some with s = t, some with t = 1       (flow.time)
    x = (1 - s) e + s a,  w = a - e                                              the straight path
    c, h = encoder(observation)                                                  condition and feature
    U, D = network(x, s, t, c) and its derivative along (w, 1)                   one forward-mode pass
    loss = mean |U - sg(w + (t - s) D)|^2 + weight * dispersive(h)               (flow.consistency, dispersive)

and one evaluation acts: ``a = e + U(e, 0, 1, c)`` (flow.solver). Mind the sign of the derivative: the published form,
with data at t = 0, has a minus (arXiv 2505.13447, equation 6).

Not as in the released code: the dispersive loss pushes features apart (there the softmax is over +distance), the loss
has no error-dependent weight, the interval (0, 1) that acting asks for is trained, and nothing is clamped on the way.
The mathematics: docs/methods/dm1.md.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import tyro

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.core.ranges import Few
from flowpolicy.core.references import Reference
from flowpolicy.flows.axes.consistency import MeanFlow
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.solvers import MapJumps
from flowpolicy.flows.axes.time_laws import Ends
from flowpolicy.flows.dispersive import Dispersive


@register_config("dm1")
@dataclasses.dataclass(frozen=True)
class DM1(Flow):
    """MeanFlow with dispersive regularisation."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("DM1: MeanFlow with Dispersive Regularization for 1-Step Robotic Manipulation", "2510.07865"),
        Reference("Mean Flows for One-step Generative Modeling", "2505.13447"),
    )
    flow: Annotated[FlowSpec, tyro.conf.Suppress] = FlowSpec(time=Ends(), consistency=MeanFlow(), solver=MapJumps())
    """A flow map along the straight path, trained by MeanFlow, that acts by jumps."""
    nfe: Few = 1
    """Network evaluations per chunk: jumps of the flow map."""
    dispersive: Dispersive = Dispersive()
    """Regulariser on the encoder's projection, or on the feature of every camera."""


def dm1_flow(share_endpoint: float) -> FlowSpec:
    """DM1 with another share of intervals that end at the data."""
    return dataclasses.replace(DM1.flow, time=Ends(share_endpoint=share_endpoint))
