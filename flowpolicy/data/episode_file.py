"""Episodes in: a dataset in any format, opened to be read episode by episode with everything that it holds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowpolicy.core.spec import Spec
from flowpolicy.data.dataset import DataConfig, open_recording, sha256_of
from flowpolicy.data.frame_conversion import FrameSource
from flowpolicy.data.hdf5 import Recording
from flowpolicy.data.robomimic import states_success, success_reward
from flowpolicy.data.stored_episode import StoredEpisode, StoredReader, from_columns, pictures_of_episode


@dataclasses.dataclass(frozen=True)
class EpisodeFile:
    """An open dataset."""

    path: Path
    recording: Recording

    @property
    def format(self) -> str:
        """Its format, e.g. 'robomimic'."""
        return self.recording.format

    @property
    def names(self) -> tuple[str, ...]:
        """Its episodes, in order."""
        return self.recording.names

    @property
    def spec(self) -> Spec:
        """What it says of observations and actions; instructions are no observation here, but text."""
        said = self.recording.spec
        kept = {key: each for key, each in said.observation.items() if not each.words}
        return dataclasses.replace(said, observation=kept)

    @property
    def env_args(self) -> dict[str, Any]:
        """What it says of the environment; empty where it says nothing."""
        return self.recording.env_args

    @property
    def pictures(self) -> Mapping[str, FrameSource]:
        """Its pictures by camera, whatever the format; empty where it has none."""
        found: Mapping[str, FrameSource] = getattr(self.recording, "frames", {})
        return found

    @property
    def sha256(self) -> str:
        """Hash of its content."""
        return sha256_of(self.recording, self.path)

    @property
    def success_reward(self) -> float | None:
        """Smallest reward of a success; None where the file does not say what a success is."""
        return success_reward(self.env_args) if states_success(self.env_args) else None

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is in the file and is not read as part of its episodes."""
        return tuple(getattr(self.recording, "left_out", ()))

    def read(self, index: int) -> StoredEpisode:
        """The episode ``names[index]``."""
        if isinstance(self.recording, StoredReader):
            return self.recording.stored(index)
        name, rows = self.recording.names[index], self.recording.lengths[index]
        pictures = {key: pictures_of_episode(source, name, rows) for key, source in self.pictures.items()}
        return from_columns(name, self.recording.episode(index), pictures)

    def number(self, name: str) -> int:
        """Place of an episode that is named by its name or by its number from 0; -1 where there is none."""
        if name in self.names:
            return self.names.index(name)
        return int(name) if name.isdecimal() and int(name) < len(self.names) else -1


@contextlib.contextmanager
def open_episodes(path: Path) -> Iterator[EpisodeFile]:
    """Open a dataset with all its pictures.

    Raises:
        DataError: as :func:`~flowpolicy.data.dataset.load_dataset`.

    """
    with contextlib.ExitStack() as opened:
        recording = opened.enter_context(open_recording(DataConfig(path=str(path))))
        if cameras := _cameras(recording):
            opened.close()
            every = DataConfig(path=str(path), cameras=tuple(cameras))
            recording = opened.enter_context(open_recording(every))
        yield EpisodeFile(path, recording)


def _cameras(recording: Recording) -> Sequence[str]:
    """Cameras whose pictures can be read."""
    return tuple(getattr(recording, "cameras", ()))
