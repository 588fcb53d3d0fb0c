"""Replay of episodes that are being collected, mixed with a file at a fixed ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowpolicy.core import keys
from flowpolicy.core.columns import Columns, concatenated
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.files import read_tensors, write_tensors
from flowpolicy.data.dataset import Dataset, as_columns
from flowpolicy.data.transitions import TransitionSampler

EpisodeRows = dict[str, Tensor]
"""One episode: ``obs.<name>`` (n, d), ``action`` (n, a), ``reward`` (n,), ``mask`` (n,)."""


class MixedReplay:
    """Batches of transitions of which a fixed share comes from the collected episodes.

    An episode can be drawn from when it has ended. Until then, and while all collected episodes are shorter than a
    chunk, every row comes from the file.

    Args:
        offline: the training file.
        sampler: makes the sampler of a data set; called with a batch size.
        batch_size: rows per batch.
        ratio: share of rows from collected episodes, in [0, 1].
        folder: where episodes are kept, one file each.

    """

    def __init__(
        self,
        offline: Dataset,
        sampler: Callable[[Dataset, int], TransitionSampler],
        batch_size: int,
        ratio: float,
        folder: Path,
    ) -> None:
        if not 0 <= ratio <= 1:
            raise ConfigError(f"--online.ratio {ratio}", expected="a share in [0, 1]")
        self._offline, self._make, self.folder = offline, sampler, folder
        self._fresh = round(ratio * batch_size)
        self._file = sampler(offline, batch_size)
        self._online: TransitionSampler | None = None
        self.episodes: list[EpisodeRows] = []

    def add(self, episode: EpisodeRows) -> None:
        """Keep a finished episode, on the disk and for the batches that follow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self._path(len(self.episodes)), episode)
        self.episodes.append(episode)
        self._index()

    def restore(self, count: int) -> None:
        """Read the first ``count`` episodes back; later ones were collected after the checkpoint and are dropped."""
        self.episodes = [read_tensors(self._path(number)) for number in range(count)]
        for path in self.folder.glob("episode_*.safetensors"):
            if int(path.stem.removeprefix("episode_")) >= count:
                path.unlink()
        self._index()

    def draw(self, generator: torch.Generator) -> Columns:
        """A batch of transitions: what :meth:`TransitionSampler.draw` gives."""
        if self._online is None or not self._fresh:
            return self._file.draw(generator)
        fresh = self._online.draw(generator)
        rest = self._file.batch_size - self._fresh
        if not rest:
            return fresh
        return concatenated(fresh, self._file.draw(generator, rest))

    def _path(self, number: int) -> Path:
        return self.folder / f"episode_{number:07d}.safetensors"

    def _index(self) -> None:
        longest = max((len(e[keys.ACTION]) for e in self.episodes), default=0)
        try:
            self._online = self._make(self._collected(), self._fresh) if self._fresh and longest else None
        except DataError:  # no episode is as long as a chunk, or none has a row with a successor
            self._online = None

    def _collected(self) -> Dataset:
        """The collected episodes as a data set."""
        lengths = torch.tensor([len(episode[keys.ACTION]) for episode in self.episodes])
        columns = {name: torch.cat([episode[name] for episode in self.episodes]) for name in self.episodes[0]}
        return dataclasses.replace(
            self._offline,
            steps=as_columns(columns),
            lengths=lengths,
            names=tuple(f"online_{number}" for number in range(len(lengths))),
            path=self.folder,
            memory_mapped=False,
        )
