"""Draw batches of windows: observation history, action chunk, and which of its steps are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from flowpolicy.core import keys, ranks
from flowpolicy.core.columns import Columns
from flowpolicy.core.devices import has_room
from flowpolicy.core.errors import DataError
from flowpolicy.core.protocols import BatchSource
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.streams import Crop, Streams
from flowpolicy.data.dataset import Dataset


class WindowSampler(BatchSource):
    """Draws windows that start uniformly at any row of a dataset.

    A window at row i has the observations of rows i-o+1 ... i and the actions of rows i ... i+h-1. It never
    crosses an episode end: before the first row of the episode the first observation repeats, past the last
    row the last action repeats with ``valid`` False. Asked for ``previous``, it has the actions of rows i-h ... i-1
    too; before the first row of the episode the first action stands, with ``known`` False.

    Told how a policy reads observations (``streams``), the sampler makes that of the whole dataset once, on ``device``:
    scaled, states side by side. A draw then is one gather of states and one of actions. What is drawn from a
    memory-mapped dataset is gathered from its files and scaled afterwards, unless a GPU has room for all of it.
    Pictures are always read from their files, uint8; a draw takes a window at random of each where ``crops`` asks for
    it, and the same one of all pictures of a history.

    Args:
        dataset: where to draw from.
        history: o, observations per window.
        chunk: h, actions per window.
        batch_size: b, windows per draw.
        device: where batches are wanted.
        previous: also give the actions before the window.
        streams: observations in environment units, name -> (b, o, *shape), to those that batches hold; as the
            ``streams`` of an agent. Unless given, they hold what the dataset does.
        crops: windows of pictures by observation, as the ``crops`` of an agent; whole pictures of all others.
        placed: also say which row of the dataset every window starts at, and the first row of its episode.

    Raises:
        DataError: every episode is shorter than a chunk.

    """

    def __init__(
        self,
        dataset: Dataset,
        history: int,
        chunk: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        previous: bool = False,
        streams: Callable[[Streams], Streams] | None = None,
        crops: Mapping[str, Crop] | None = None,
        placed: bool = False,
    ) -> None:
        _require_a_chunk(dataset, chunk)
        self._frames, self._crops = dataset.frames, dict(crops or {})
        self.batch_size, self.device, self.previous = batch_size, torch.device(device), previous
        self.placed = placed
        steps = dataset.steps
        self.rows, self._history, self._chunk = steps.rows, history, chunk
        self._obs: Streams = dict(steps[keys.OBS])
        self._action, self._streams = steps[keys.ACTION], streams
        columns = [*self._obs.values(), self._action]
        # Thrice: the columns, what is made of them, and what making it takes.
        whole = 3 * sum(column.numel() * column.element_size() for column in columns)
        if not dataset.memory_mapped or has_room(self.device, whole):
            self._obs = {name: column.to(self.device) for name, column in self._obs.items()}
            self._action = self._action.to(self.device)
            if streams is not None:
                histories = streams({name: column.unsqueeze(1) for name, column in self._obs.items()})
                self._obs, self._streams = {name: value.squeeze(1) for name, value in histories.items()}, None
        # Rows are looked up where the data is: on the device, or on the CPU for a memory-mapped file.
        self.place = self._action.device
        # Numbers of rows take half the memory wherever they fit.
        kind: dict[str, Any] = {"dtype": torch.int32 if self.rows < 1 << 30 else torch.int64, "device": self.place}
        self._bounds = torch.stack([dataset.starts, dataset.starts + dataset.lengths - 1]).to(**kind)
        self._bounds = self._bounds.repeat_interleave(dataset.lengths.to(self.place), dim=1)
        """(2, N) first and last row of the episode of each row."""
        self._back = torch.arange(1 - history, 1, **kind)
        self._ahead = torch.arange(chunk, **kind)

    @property
    def reads(self) -> bool:
        """Whether a draw reads files: those of pictures."""
        return bool(self._frames)

    def draw(self, generator: torch.Generator, rows: int = 0) -> Columns:
        """A batch of windows.

        Args:
            generator: the only source of randomness.
            rows: how many; a whole batch unless given.

        Returns:
            ``("obs", name)`` (b, o, d) float32, or what ``streams`` makes of them, pictures (b, o, h, w, 3) uint8,
            ``"action"`` (b, h, a) float32, ``"valid"`` (b, h) bool; ``"previous"`` and ``"known"`` likewise where they
            are asked for.

        """
        return self.drawn(generator, rows)()

    def drawn(self, generator: torch.Generator, rows: int = 0) -> Callable[[], Columns]:
        """Choose a batch as :meth:`draw` does, and return what gathers it, in any thread, without the generator."""
        index, crops = self._index(rows or self.batch_size, generator), self._crop_stream(generator)
        return lambda: self.at(index, crops)

    def _index(self, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        """Rows at which windows start."""
        return torch.randint(self.rows, (count,), generator=generator, device=generator.device)

    def _crop_stream(self, generator: torch.Generator) -> np.random.Generator | None:
        """Where the windows of a batch's pictures come from, a stream of its own; None where nothing is cropped."""
        if not (self._frames.keys() & self._crops.keys()):
            return None  # nothing is drawn: batches of states stay what they were before there were pictures
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        return numpy_generator(int(seed), "crops")

    def at(self, index: Int[Tensor, " b"], crops: np.random.Generator | None = None) -> Columns:
        """The windows that start at rows ``index`` of the dataset, with whole pictures unless ``crops`` is given."""
        index = index.to(self.place, self._ahead.dtype)
        first, last = self._bounds.index_select(1, index).unsqueeze(2)
        return self._placed(self._windows(index.unsqueeze(1), first, last, crops))

    def _windows(
        self,
        start: Int[Tensor, "b 1"],
        first: Int[Tensor, "b 1"],
        last: Int[Tensor, "b 1"],
        crops: np.random.Generator | None,
    ) -> Columns:
        """The windows at ``start``, whose episodes reach from ``first`` to ``last``; actions where the data is."""
        batch = Columns({keys.OBS: self._seen(start, first, crops)})
        ahead = start if self._chunk == 1 else start + self._ahead
        within = start if self._chunk == 1 else torch.minimum(ahead, last)
        batch[keys.ACTION] = _gather(self._action, within)
        batch[keys.VALID] = torch.ones_like(start, dtype=torch.bool) if self._chunk == 1 else ahead <= last
        if self.placed:
            batch |= {keys.ROW: start.squeeze(1), keys.FIRST: first.squeeze(1)}
        if self.previous:
            behind = ahead - self._chunk
            batch[keys.PREVIOUS] = _gather(self._action, torch.maximum(behind, first))
            batch[keys.KNOWN] = behind >= first
        return batch

    def _seen(
        self, newest: Int[Tensor, "b 1"], first: Int[Tensor, "b 1"], crops: np.random.Generator | None
    ) -> Columns:
        """Observations of the rows up to ``newest``, name -> (b, o, *shape), none before ``first``; as wanted."""
        past = newest if self._history == 1 else torch.maximum(newest + self._back, first)
        obs = self._placed(Columns({name: _gather(column, past) for name, column in self._obs.items()}))
        if self._streams is not None:
            obs = Columns(self._streams(obs))
        if self._frames:
            rows = past.cpu().long().numpy()
            obs |= {name: self._pictures(name, rows, crops).to(self.device) for name in self._frames}
        return obs

    def _pictures(self, name: str, rows: NDArray[np.int64], crops: np.random.Generator | None) -> Tensor:
        """(b, o, h, w, 3) uint8 of the rows (b, o); of their own rows where processes train together."""
        store, crop, corners = self._frames[name], self._crops.get(name), None
        # Of all that is read only pictures are large: processes that train together read those of their own rows.
        group = ranks.current()
        mine = group.rows if group and group.proven else slice(None)
        if crop is not None and crops is not None:
            places = crop.places(*store.shape[1:3])
            corner = np.stack([crops.integers(count, size=len(rows)) for count in places], axis=1)
            corners = corner[mine].repeat(rows.shape[1], axis=0)
        rows = rows[mine]
        found = store.take(rows.reshape(-1), crop, corners)
        return torch.from_numpy(found).view(*rows.shape, *found.shape[1:])

    def _placed(self, batch: Columns) -> Columns:
        """The batch where it is wanted."""
        return batch if self.place == self.device else batch.to(self.device)


def require_whole_chunks(dataset: Dataset, chunk: int) -> None:
    """Raise :class:`DataError` where an episode is shorter than a chunk: most are recordings that were cut off."""
    short = (dataset.lengths < chunk).nonzero().flatten().tolist()
    if short:
        _require_a_chunk(dataset, chunk)  # whose absence no padding mends
        raise DataError(
            f"{dataset.path}: {dataset.names[short[0]]} has {int(dataset.lengths[short[0]])} actions, "
            f"fewer than a chunk of {chunk} ({len(short)} of {len(dataset.names)} episodes are so short)",
            fix="remove these episodes, lower --agent.chunk, or accept them with --data.short-episodes pad",
        )


def _require_a_chunk(dataset: Dataset, chunk: int) -> None:
    longest = int(dataset.lengths.max())
    if longest < chunk:
        raise DataError(
            f"{dataset.path}: every episode is shorter than a chunk of {chunk} actions (the longest has {longest})",
            fix=f"choose a chunk of at most {longest}, or record longer episodes",
        )


def _gather(column: Shaped[Tensor, "n *shape"], rows: Int[Tensor, "b w"]) -> Shaped[Tensor, "b w *shape"]:
    """Rows of a column, windowed."""
    return column.index_select(0, rows.reshape(-1)).view(*rows.shape, *column.shape[1:])
