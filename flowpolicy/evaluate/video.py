"""Videos of recorded episodes: MP4, H.264, yuv420p, which every player and browser opens."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from flowpolicy.core.errors import EvaluationError, MissingExtraError
from flowpolicy.core.files import replacing
from flowpolicy.evaluate.rollout import Episode
from flowpolicy.evaluate.traces import save_trace

BORDER = 4
"""Width of the coloured border, pixels."""
BAR = 6
"""Height of the bar that fills as the episode goes on, pixels."""
PLAYING, SUCCEEDED, FAILED = (120, 120, 120), (0, 158, 115), (213, 94, 0)
"""Border colours: before success, from the first success on, and on the last frame of a failure."""


def save_videos(
    folder: Path, evaluation: str, episodes: Sequence[Episode], fps: float, success_defined: bool = True
) -> list[Path]:
    """Write the first episodes of an evaluation, in place of whatever videos the same evaluation had before.

    Beside each video stands the trace of its episode, if there is one.
    """
    written = [save_video(folder, i, episode, fps, evaluation, success_defined) for i, episode in enumerate(episodes)]
    traced = {path.with_suffix(".json"): one.trace for path, one in zip(written, episodes, strict=True) if one.trace}
    for path, trace in traced.items():
        save_trace(path, dataclasses.replace(trace, rate_hz=fps))
    every = {*films_of(folder, evaluation).values(), *films_of(folder, evaluation, ".json").values()}
    for path in every - {*written, *traced}:
        path.unlink()
    return written


def films_of(folder: Path, evaluation: str, suffix: str = ".mp4") -> dict[int, Path]:
    """The videos of one evaluation in a folder, or with ``.json`` the traces beside them, by position in the plan."""
    name = re.compile(rf"episode_(\d+)-{re.escape(evaluation)}(?:_success|_failure)?{re.escape(suffix)}")
    found = {path: name.fullmatch(path.name) for path in sorted(folder.glob(f"episode_*{suffix}"))}
    return {int(match[1]): path for path, match in found.items() if match}


def save_video(
    folder: Path, position: int, episode: Episode, fps: float, evaluation: str = "", success_defined: bool = True
) -> Path:
    """Write the frames of an episode to ``folder/episode_0007-EVALUATION_success.mp4`` and return the path.

    Args:
        folder: where to.
        position: position of the episode in its plan, for the name.
        episode: with frames of any one size.
        fps: frames per second; the environment's control rate plays in real time.
        evaluation: name of the evaluation that the episode belongs to; left out of the file's name if empty.
        success_defined: whether the environment defines success; otherwise neither name nor border speaks of it.

    Raises:
        EvaluationError: the episode was not recorded.
        MissingExtraError: the extra 'video' is not installed.

    """
    if not episode.frames:
        raise EvaluationError(f"episode {position} has no frames", fix="name it in rollout(record=...)")
    require_imageio()
    name = f"episode_{position:04d}-{evaluation}" if evaluation else f"episode_{position:04d}"
    outcome = f"_{'success' if episode.success else 'failure'}" if success_defined else ""
    path = folder / f"{name}{outcome}.mp4"
    write_film(path, [decorate(episode, step, success_defined) for step in range(len(episode.frames))], fps)
    return path


def write_film(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames, each (height, width, 3) uint8 with even sides, as MP4, atomically.

    Raises:
        MissingExtraError: the extra 'video' is not installed.

    """
    ffmpeg = require_imageio()
    height, width = frames[0].shape[:2]
    with replacing(path) as temporary:
        writer = ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            output_params=["-f", "mp4"],  # the temporary name has no .mp4 to tell the container from
        )
        writer.send(None)
        for frame in frames:
            writer.send(frame)
        writer.close()


def require_imageio() -> ModuleType:
    """The package imageio_ffmpeg; call it before a rollout whose frames are to be written.

    Raises:
        MissingExtraError: it is not installed.

    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingExtraError("imageio-ffmpeg", "video") from error
    return imageio_ffmpeg


def decorate(episode: Episode, step: int, success_defined: bool = True) -> np.ndarray:
    """Frame ``step`` with a border that tells the outcome so far and a bar that fills with the steps.

    Returns:
        (height + 2 border + bar, width + 2 border, 3) uint8, one row or column more where that is odd:
        yuv420p halves the colour planes.

    """
    frame = episode.frames[step]
    height, width = frame.shape[:2]
    shape = (height + 2 * BORDER + BAR, width + 2 * BORDER)
    canvas = np.empty((shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, 3), dtype=np.uint8)
    canvas[:] = _colour(episode, step) if success_defined else PLAYING
    canvas[BORDER : BORDER + height, BORDER : BORDER + width] = frame
    bar = canvas[BORDER + height : BORDER + height + BAR, BORDER : BORDER + width]
    bar[:] = 0
    bar[:, : round(width * step / max(len(episode.frames) - 1, 1))] = 255
    return canvas


def _colour(episode: Episode, step: int) -> tuple[int, int, int]:
    if episode.success_step is not None and step >= episode.success_step:
        return SUCCEEDED
    return FAILED if step == len(episode.frames) - 1 else PLAYING
