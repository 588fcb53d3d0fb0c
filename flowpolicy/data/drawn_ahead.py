"""Several batches at once: after an update nothing of a draw is in the caches of a CPU, and its calls take the time."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from flowpolicy.core.columns import Columns
from flowpolicy.core.protocols import BatchSource
from flowpolicy.data.windows import WindowSampler

_ROWS = 2048
"""Rows that are drawn at once: more would leave the caches before they are used, and gain nothing."""


class DrawnAhead(BatchSource):
    """The batches of a sampler, one after the other, drawn in blocks of 2,048 rows.

    On a CPU these are the batches that the sampler draws one by one, bit for bit. A checkpoint holds the generator's
    state after the block; :meth:`state` holds the one before it, and how many of its batches were taken.

    Args:
        sampler: of windows or transitions.

    """

    def __init__(self, sampler: WindowSampler) -> None:
        self.sampler = sampler
        self._batches = max(1, _ROWS // sampler.batch_size)
        self._block: list[Columns] = []
        """The batches that are left, the next one last."""
        self._before = torch.empty(0, dtype=torch.uint8)
        self._restored: dict[str, Any] = {}

    @override
    def draw(self, generator: torch.Generator) -> Columns:
        """The next batch; always from the same generator."""
        if not self._block:
            self._fill(generator)
        return self._block.pop()

    @override
    def state(self) -> dict[str, Any]:
        if self._restored:
            return self._restored
        if not self._block:
            return {}
        before = b64encode(self._before.numpy().tobytes()).decode()
        return {"before": before, "batches": self._batches, "left": len(self._block)}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self._block, self._restored = [], dict(state)

    @override
    def beside(self) -> DrawnAhead:
        return DrawnAhead(self.sampler)

    def _fill(self, generator: torch.Generator) -> None:
        count, left = self._batches, self._batches
        if self._restored:  # the generator is where it was after this block
            count, left = self._restored["batches"], self._restored["left"]
            before = torch.frombuffer(bytearray(b64decode(self._restored["before"])), dtype=torch.uint8)
            generator = torch.Generator(generator.device).set_state(before)
            self._restored = {}
        self._before = generator.get_state()
        block = self.sampler.draw(generator, count * self.sampler.batch_size).split(self.sampler.batch_size)
        self._block = block[::-1][:left]
