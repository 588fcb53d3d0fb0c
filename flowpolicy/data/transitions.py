"""Draw batches for value learning: windows with their rewards and the observation that the return bootstraps from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.errors import DataError
from flowpolicy.core.streams import Crop, Streams
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.windows import WindowSampler


class TransitionSampler(WindowSampler):
    """Draws windows that start at any row from which a return can be estimated.

    The return of a window at row i sums the rewards of n rows and bootstraps from the observation of row i + n:

    - n = ``horizon`` where the episode goes on that long;
    - a true termination (``mask`` 0) inside ends the return with its row, and nothing is bootstrapped;
    - an episode that is cut off (``mask`` 1 in its last row) bootstraps from its last observation, with the
      rewards of the rows before it: what follows the last action is not stored. So the last row of such an
      episode starts no window.

    Rewards are those of the dataset: a shift (:attr:`flowpolicy.data.dataset.DataConfig.reward_shift`) is added when
    the file is read, and nowhere else.

    Args:
        dataset: where to draw from.
        history: o, observations per window.
        chunk: h, actions per window.
        batch_size: b, windows per draw.
        device: where batches are wanted.
        horizon: r, rows that a return may sum; the length of the chunk unless given.
        streams: see :class:`WindowSampler`.
        crops: likewise. The pictures where a return bootstraps have windows of their own.

    Raises:
        DataError: every episode is shorter than a chunk, or no row has a successor.

    """

    def __init__(
        self,
        dataset: Dataset,
        history: int,
        chunk: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        horizon: int = 0,
        streams: Callable[[Streams], Streams] | None = None,
        crops: Mapping[str, Crop] | None = None,
    ) -> None:
        super().__init__(dataset, history, chunk, batch_size, device, streams=streams, crops=crops)
        self._reward = dataset.steps[keys.REWARD].to(self.place)
        self._horizon = horizon or chunk
        self._span = torch.arange(self._horizon, dtype=self._ahead.dtype, device=self.place)
        mask, last = dataset.steps[keys.MASK].numpy(), self._bounds[1].cpu().numpy()
        row = np.arange(self.rows, dtype=last.dtype)
        drawable = np.flatnonzero((last > row) | (mask == 0)).astype(row.dtype)
        if not len(drawable):
            raise DataError(
                f"{dataset.path}: no row has a successor: every episode is one row that is not a termination",
                fix="record whole episodes",
            )
        self.drawable = torch.from_numpy(drawable).to(self.place)
        """(N,) rows that a return can be estimated from, in order."""
        stop, horizon = _terminations(mask, row, last), min(self._horizon, self.rows)
        terminated = stop < row + horizon
        steps = np.where(terminated, stop + 1 - row, np.minimum(last - row, horizon))
        self._following = torch.from_numpy(np.minimum(row + steps, last)).to(self.place)
        """(N,) the row that the return of each row bootstraps from."""
        self._ends = torch.from_numpy(np.stack([~terminated, steps]).astype(np.float32)).to(self.place)
        """(2, N) whether it does, and after how many rows."""

    def draw(self, generator: torch.Generator, rows: int = 0) -> Columns:
        """A batch of transitions.

        Args:
            generator: the only source of randomness.
            rows: how many; a whole batch unless given.

        Returns:
            What :meth:`WindowSampler.draw` gives, and ``"reward"`` (b, r), ``"mask"`` (b,), ``"steps"`` (b,),
            ``("next_obs", name)`` (b, o, d), ``"next_action"`` (b, a), all float32.

        """
        return super().draw(generator, rows)

    @override
    def _index(self, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        place = torch.randint(len(self.drawable), (count,), generator=generator, device=generator.device)
        return self.drawable.index_select(0, place.to(self.place))

    def at(self, index: Int[Tensor, " b"], crops: np.random.Generator | None = None) -> Columns:
        """The transitions that start at rows ``index``, which must be rows that are drawn; pictures as of windows."""
        index = index.to(self.place, self._ahead.dtype)
        first, last = self._bounds.index_select(1, index).unsqueeze(2)
        following = self._following.index_select(0, index)
        batch = self._windows(index.unsqueeze(1), first, last, crops)
        batch[keys.NEXT_OBS] = self._seen(following.unsqueeze(1), first, crops)
        batch[keys.NEXT_ACTION] = self._action.index_select(0, following)
        batch[keys.MASK], batch[keys.STEPS] = self._ends.index_select(1, index)
        batch[keys.REWARD] = self._rewards(index.unsqueeze(1), batch[keys.STEPS])
        return self._placed(batch)

    def _rewards(self, start: Int[Tensor, "b 1"], steps: Float[Tensor, " b"]) -> Float[Tensor, "b r"]:
        """Rewards of the ``steps`` rows from ``start``, then zeros."""
        if self._horizon == 1:
            return self._reward.index_select(0, start.view(-1)).unsqueeze(1)
        rows = (start + self._span).clamp_(max=self.rows - 1)
        reward = self._reward.index_select(0, rows.view(-1)).view(rows.shape)
        return reward.masked_fill_(self._span >= steps.unsqueeze(1), 0.0)


def _terminations(mask: NDArray[np.float32], row: NDArray[Any], last: NDArray[Any]) -> NDArray[Any]:
    """For every row (N,) the first row from it on where its episode truly terminates; far beyond the data if none."""
    never = row.dtype.type(2 * len(row) + 1)
    ahead = np.minimum.accumulate(np.where(mask == 0, row, never)[::-1])[::-1]
    return np.where(ahead <= last, ahead, never)
