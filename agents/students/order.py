"""What is asked of a student; free of torch, for the help of ``flowpolicy distill``."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flowpolicy.core.ranges import Few, Natural, Positive, Share

Inversion = Literal["afp", "midpoint", "exact"]
"""How a flow is run backwards; see :class:`Order`."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What is asked of a student, whatever the method."""

    nfe: Few = 1
    """Evaluations per chunk of the student."""
    teacher_nfe: Few = 32
    """Evaluations of the teacher per pair."""
    width: Natural = 0
    """Width of a student with an MLP; 0 is the teacher's."""
    depth: Natural = 0
    """Its hidden layers; 0 is the teacher's."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    real: Share = 0.0
    """'improved-reflow': share of rows with real chunks, whose noise the teacher's flow gives, run backwards."""
    inversion: Inversion = "afp"
    """How it runs backwards: 'afp', 'midpoint', or 'exact' at eight times the evaluations."""
