"""Draw batches for value learning: windows with their rewards and the observation that the return bootstraps from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int64
from tensordict import TensorDict
from torch import Tensor

from flowpolicy.core import keys
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
        place = self._action.device
        reward, mask = dataset.steps[keys.REWARD][:], dataset.steps[keys.MASK][:]
        self._reward = reward.to(place)
        self._horizon = horizon or chunk
        self._span = torch.arange(self._horizon, device=place)
        self._stop = _terminations(mask, dataset.starts + dataset.lengths).to(place)
        followed = self._bounds[:, 1] > torch.arange(self.rows, device=place)
        self._drawable = (followed | (mask.to(place) == 0)).nonzero().flatten()
        if not len(self._drawable):
            raise DataError(
                f"{dataset.path}: no row has a successor: every episode is one row that is not a termination",
                fix="record whole episodes",
            )

    def draw(self, generator: torch.Generator, rows: int = 0) -> TensorDict:
        """A batch of transitions.

        Args:
            generator: the only source of randomness.
            rows: how many; a whole batch unless given.

        Returns:
            What :meth:`WindowSampler.draw` gives, and ``"reward"`` (b, r), ``"mask"`` (b,), ``"steps"`` (b,),
            ``("next_obs", name)`` (b, o, d), ``"next_action"`` (b, a), all float32.

        """
        size = (rows or self.batch_size,)
        place = torch.randint(len(self._drawable), size, generator=generator, device=generator.device)
        return self.at(self._drawable[place.to(self._drawable.device)], self._crop_stream(generator))

    def at(self, index: Int64[Tensor, " b"], crops: np.random.Generator | None = None) -> TensorDict:
        """The transitions that start at rows ``index`` of the dataset; pictures as :meth:`WindowSampler.at`."""
        batch = super().at(index, crops)
        index = index.to(self._bounds.device)
        first, last = self._bounds.index_select(0, index).unbind(1)
        stop = self._stop.index_select(0, index)
        terminated = stop < index + self._horizon
        steps = torch.where(terminated, stop + 1 - index, (last - index).clamp(max=self._horizon))
        following = torch.minimum(index + steps, last)
        batch[keys.NEXT_OBS] = self._history(following, first[:, None], crops)
        batch[keys.NEXT_ACTION] = self._action.index_select(0, following).to(self.device)
        batch[keys.REWARD] = self._rewards(index, steps).to(self.device)
        batch[keys.MASK] = 1 - terminated.to(self.device, torch.float32)
        batch[keys.STEPS] = steps.to(self.device, torch.float32)
        return batch

    def _rewards(self, index: Int64[Tensor, " b"], steps: Int64[Tensor, " b"]) -> Float[Tensor, "b r"]:
        """Rewards of the ``steps`` rows from ``index``, then zeros."""
        rows = (index[:, None] + self._span).clamp(max=self.rows - 1)
        reward = self._reward.index_select(0, rows.flatten()).view(rows.shape)
        return reward * (self._span < steps[:, None])


def _terminations(mask: Float[Tensor, " n"], ends: Int64[Tensor, " episodes"]) -> Int64[Tensor, " n"]:
    """For every row the first row from it on where its episode truly terminates; far beyond the data if none."""
    rows, never = mask.shape[0], 2 * mask.shape[0] + (1 << 32)
    found = torch.where(mask == 0, torch.arange(rows), never)
    ahead = found.flip(0).cummin(0).values.flip(0)
    ends = ends.repeat_interleave(torch.diff(ends, prepend=ends.new_zeros(1)))
    return torch.where(ahead < ends, ahead, never)
