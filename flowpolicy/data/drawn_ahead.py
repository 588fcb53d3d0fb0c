"""Batches before they are asked for.

Of states several at once: after an update nothing of a draw is in the caches of a CPU, and its calls take the time.
Those with pictures one ahead, in a thread: reading and decoding take no time of the update where a core is free.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from typing_extensions import override

from flowpolicy.core.columns import Columns
from flowpolicy.core.protocols import BatchSource
from flowpolicy.data.windows import WindowSampler

_ROWS = 2048
"""Rows of states that are drawn at once: more would leave the caches before they are used, and gain nothing."""


class DrawnAhead(BatchSource):
    """The batches of a sampler, one after the other, drawn in blocks of 2,048 rows, or with pictures one batch ahead.

    On a CPU these are the batches that the sampler draws one by one, bit for bit. A checkpoint holds the generator's
    state after the block; :meth:`state` holds the one before it, and how many of its batches were taken.

    Args:
        sampler: of windows or transitions.

    """

    def __init__(self, sampler: WindowSampler) -> None:
        self.sampler = sampler
        self._batches = 1 if self.reads else max(1, _ROWS // sampler.batch_size)
        self._block: list[Columns] = []
        """The batches that are left, the next one last."""
        self._coming: Future[Columns] | None = None
        """The batch after those, which is being read."""
        self._thread = ThreadPoolExecutor(1, "pictures") if self.reads else None
        self._before = torch.empty(0, dtype=torch.uint8)
        self._restored: dict[str, Any] = {}

    @property
    def reads(self) -> bool:
        """Whether a batch needs files to be read: those of pictures."""
        return self.sampler.reads

    @override
    def draw(self, generator: torch.Generator) -> Columns:
        """The next batch; always from the same generator."""
        if not self._block and not self._coming:
            self._fill(generator)
        if self._coming:
            self._block, self._coming = [self._coming.result()], None
        batch = self._block.pop()
        if self.reads:
            self._fill(generator)
        return batch

    @override
    def state(self) -> dict[str, Any]:
        if self._restored:
            return self._restored
        left = len(self._block) + bool(self._coming)
        if not left:
            return {}
        before = b64encode(self._before.numpy().tobytes()).decode()
        return {"before": before, "batches": self._batches, "left": left}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self._block, self._coming, self._restored = [], None, dict(state)

    @override
    def beside(self) -> DrawnAhead:
        return DrawnAhead(self.sampler)

    def _fill(self, generator: torch.Generator) -> None:
        count, left = self._batches, self._batches
        if self._restored:  # the generator is where it was after this block
            before = torch.frombuffer(bytearray(b64decode(self._restored["before"])), dtype=torch.uint8)
            if len(before) == len(generator.get_state()):  # on another kind of device the stream begins anew
                count, left = self._restored["batches"], self._restored["left"]
                generator = torch.Generator(generator.device).set_state(before)
            self._restored = {}
        self._before = generator.get_state()
        gather = self.sampler.drawn(generator, count * self.sampler.batch_size)
        if self._thread:
            self._coming = self._thread.submit(gather)
        else:
            self._block = gather().split(self.sampler.batch_size)[::-1][:left]
