"""How the rows of a laboratory table are trained and measured. Imports no torch: the command line reads it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from flowpolicy.core.ranges import Count, Depth, Few, Range, Width
from flowpolicy.lab.chunk_toy import ChunkToy


@dataclasses.dataclass(frozen=True)
class LabPlan:
    """How recipes are trained and measured; the same for all rows of a table."""

    toy: ChunkToy = ChunkToy()
    """The task."""
    updates: Count = 5000
    """Gradient updates of a run."""
    batch: Count = 512
    """Chunks per update."""
    width: Width = 128
    """Width of the hidden layers of plain flow matching; all rows have about as many parameters."""
    depth: Depth = 3
    """Its hidden layers."""
    observations: Count = 64
    """Observations that were not trained on, for the measure."""
    samples: Annotated[int, Range(2, 2**14)] = 192
    """Chunks drawn for each of them."""
    nfes: tuple[Few, ...] = (1, 2, 4, 8, 64)
    """Network evaluations per chunk; a recipe is measured where it can act."""
