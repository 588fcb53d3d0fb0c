"""One episode as a file holds it: every number in its own type, and what no training reads too.

:class:`~flowpolicy.data.hdf5.EpisodeColumns` is what a policy learns from; this is what a file must not lose when it
is converted, merged, filtered or edited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.hdf5 import EpisodeColumns

INFOS = "infos/"
"""How what lies beside an episode is called when it has one row per step: D4RL's and Minari's word."""
DONES = "dones"
"""RoboMimic's own flags, which mark successes, ends or both."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of one camera in one episode, unread."""

    size: tuple[int, int, int]
    """(height, width, 3)."""
    rows: int
    """How many."""
    blocks: Callable[[], Iterator[NDArray[np.uint8]]]
    """Reads them, some at a time: (n, height, width, 3) uint8."""

    def cut(self, start: int, end: int) -> Pictures:
        """Those from row ``start`` to before row ``end``."""

        def blocks() -> Iterator[NDArray[np.uint8]]:
            row = 0
            for block in self.blocks():
                if row >= end:
                    return
                part = block[max(start - row, 0) : end - row]
                if len(part):
                    yield part
                row += len(block)

        return Pictures(self.size, end - start, blocks)


@dataclasses.dataclass(frozen=True)
class StoredEpisode:
    """T steps of an episode."""

    name: str
    obs: dict[str, NDArray[Any]]
    """Observation -> (T, d) before the action of the same row, in the file's order; without pictures."""
    action: NDArray[Any]
    """(T, a)."""
    reward: NDArray[Any] | None
    """(T,); None where the file has none."""
    terminated: NDArray[np.bool_]
    """(T,) whether the task ended there, so that nothing follows."""
    cut_off: bool = False
    """Whether the file says that time ran out at the last step; an episode without either mark was cut off too."""
    last_obs: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    """Observation -> (d,) after the last action; empty where the file does not have it."""
    pictures: dict[str, Pictures] = dataclasses.field(default_factory=dict)
    """Pictures by observation."""
    success: bool | None = None
    """Whether it succeeded; None where the file does not say."""
    states: NDArray[Any] | None = None
    """(T, n) simulator states before the action."""
    model_xml: str | None = None
    """Simulator model."""
    text: str = ""
    """Instruction."""
    filters: tuple[str, ...] = ()
    """Filter keys that select it."""
    aside: dict[str, NDArray[Any] | h5py.Dataset] = dataclasses.field(default_factory=dict)
    """What else the file holds of it, by its place: any array, of any length."""
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Text and numbers that are attached to it."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.action)

    def by_row(self, place: str) -> bool:
        """Whether an array of ``aside`` has one row per step."""
        shape = self.aside[place].shape
        return bool(shape) and shape[0] == self.steps

    def cut(self, start: int, end: int) -> StoredEpisode:
        """The steps from ``start`` to before ``end``."""
        if (start, end) == (0, self.steps):
            return self
        rows = slice(start, end)
        last = self.last_obs if end == self.steps else {key: value[end] for key, value in self.obs.items()}
        return dataclasses.replace(
            self,
            obs={key: value[rows] for key, value in self.obs.items()},
            action=self.action[rows],
            reward=None if self.reward is None else self.reward[rows],
            terminated=self.terminated[rows],
            last_obs=last,
            pictures={key: each.cut(start, end) for key, each in self.pictures.items()},
            states=None if self.states is None else self.states[rows],
            aside={place: each[rows] if self.by_row(place) else each for place, each in self.aside.items()},
        )


@runtime_checkable
class StoredReader(Protocol):
    """A :class:`~flowpolicy.data.hdf5.Recording` that reads whole episodes too."""

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]``, with everything that the file holds of it."""


def from_columns(name: str, columns: EpisodeColumns, pictures: dict[str, Pictures]) -> StoredEpisode:
    """What there is of an episode in a format of which only what is learned from is read."""
    return StoredEpisode(name, columns.obs, columns.action, columns.reward, columns.mask == 0, pictures=pictures)


def pictures_of_episode(source: Any, name: str, rows: int) -> Pictures:
    """The pictures of an episode in a :class:`~flowpolicy.data.frames.FrameSource`."""
    place: Sequence[str] = source.names
    number = list(place).index(name)
    return Pictures(source.size, rows, lambda: source.blocks(number, 64))
