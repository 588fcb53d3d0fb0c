"""A dataset as a file of rerun, the viewer of recordings: traces and pictures of some episodes over time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from flowpolicy.core import keys
from flowpolicy.core.errors import MissingExtraError
from flowpolicy.core.files import replacing
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.episode_file import EpisodeFile


def require_rerun() -> Any:
    """The module rerun.

    Raises:
        MissingExtraError: the extra 'rerun' is not installed.

    """
    try:
        import rerun
    except ImportError as error:
        raise MissingExtraError("rerun", "rerun") from error
    return rerun


def write_rerun(dataset: Dataset, file: EpisodeFile, episodes: Sequence[int], rate: float, out: Path) -> None:
    """Write episodes as ``EPISODE/action/0``, ``EPISODE/KEY/0``, ``EPISODE/reward`` and ``EPISODE/CAMERA``.

    Every episode begins at time 0, so that several can be laid over each other.

    Args:
        dataset: with the numbers of every step.
        file: the same, opened for its pictures.
        episodes: which, by their position in it.
        rate: steps per second.
        out: the file; it appears whole or not at all.

    """
    rerun = require_rerun()
    with replacing(out) as temporary:
        stream = rerun.RecordingStream("flowpolicy", recording_id=f"flowpolicy-{dataset.sha256[:16]}")
        stream.save(str(temporary))
        for number in episodes:
            name, start = dataset.names[number], int(dataset.starts[number])
            rows = slice(start, start + int(dataset.lengths[number]))
            groups = {"action": dataset.steps[keys.ACTION][rows], "reward": dataset.steps[keys.REWARD][rows, None]}
            groups |= {key: column[rows].flatten(1) for key, column in dataset.steps[keys.OBS].items()}
            steps = np.arange(rows.stop - rows.start)
            for key, column in groups.items():
                for dim in range(column.shape[1]):
                    place = f"{name}/{key}" if column.shape[1] == 1 else f"{name}/{key}/{dim}"
                    _send(
                        rerun,
                        stream,
                        place,
                        steps,
                        rate,
                        rerun.Scalars.columns(scalars=column[:, dim].double().numpy()),
                    )
            for camera, pictures in file.read(number).pictures.items():
                frames = itertools.chain.from_iterable(pictures.blocks())
                encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=90) for frame in frames]
                said = rerun.EncodedImage.columns(blob=encoded, media_type=["image/jpeg"] * len(encoded))
                _send(rerun, stream, f"{name}/{camera}", np.arange(len(encoded)), rate, said)
        stream.flush()
        stream.disconnect()


def _send(rerun: Any, stream: Any, place: str, steps: Any, rate: float, columns: Any) -> None:
    times = [rerun.TimeColumn("step", sequence=steps), rerun.TimeColumn("time", duration=steps / rate)]
    rerun.send_columns(place, indexes=times, columns=columns, recording=stream)
