"""What may be wrong with a LeRobot folder alone: its videos, its statistics, and that nobody says what an action is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, DataWarning
from flowpolicy.core.spec import INSTRUCTION, UNSTATED
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.dataset_checks import Finding
from flowpolicy.data.lerobot_meta import LeRobotFolder
from flowpolicy.data.lerobot_pictures import LeRobotFrames, VideoFile, place_episodes
from flowpolicy.data.lerobot_recording import LeRobotRecording

_SAMPLED = 24  # pictures that the statistics of a camera are compared with
_ROWS = 50_000
_FOLLOWS, _BEST = 0.9, 0.5
_JOINTS = re.compile(r"joint|motor|shoulder|elbow|waist|wrist_(flex|roll|1|2|3)|\.pos\b|qpos", re.IGNORECASE)
_POSES = re.compile(
    r"(?:^|_|\b)(x|y|z|rx|ry|rz|roll|pitch|yaw|qx|qy|qz|qw)(?:$|_|\b)|eef|pose|cartesian", re.IGNORECASE
)


def check_folder(dataset: Dataset) -> list[Finding]:
    """What is found of a folder; a line of level 'error' names episode and frame, or the file."""
    recording = LeRobotRecording(dataset.path)
    found = [_check_convention(dataset, recording), _check_statistics(recording)]
    for key in recording.pictures:
        found += _check_camera(recording, key)
    return found


def check_videos(recording: LeRobotRecording, key: str) -> Iterator[Finding]:
    """Every video of a camera: whether it opens, what it is coded with, and where the episodes stand in it."""
    feature = recording.feature(key)
    if feature.dtype != "video":
        return
    folder, declared, other = recording.folder, recording.declared_codec(key), set()
    files = sorted({place[0] for episode in folder.episodes if (place := episode.videos.get(feature.name))})
    source = LeRobotFrames(folder, feature, folder.episodes)
    mended = sorted(set(source.files) - set(files))
    if mended:
        yield Finding(
            "warning",
            f"videos {key}",
            f"the folder holds {mended[0]}, and its template says {files[0]}",
            "correct video_path in meta/info.json",
        )
    for name in source.files:
        video = None
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", DataWarning)
                video = VideoFile(folder, name, feature.size)
                place_episodes(folder, feature, name, video)
            for line in told:
                yield Finding("warning", f"videos {key}", str(line.message), "write the folder anew from its source")
            if declared and video.codec not in declared:
                other.add(video.codec)
        except DataError as error:
            yield Finding("error", f"videos {key}", error.what, error.fix)
        finally:
            if video is not None:
                video.close()
    if other:
        yield Finding(
            "note",
            f"videos {key}",
            f"meta/info.json says {'/'.join(sorted(declared))}, and they are coded as {', '.join(sorted(other))}",
            "nothing depends on it here; other readers may choose a decoder by that word",
        )


def _check_camera(recording: LeRobotRecording, key: str) -> list[Finding]:
    try:
        found = list(check_videos(recording, key))
        if not any(each.level == "error" for each in found):
            found += _check_pixels(recording, key)
    except DataError as error:
        return [Finding("error", f"videos {key}", error.what, error.fix)]
    return found or [Finding("ok", f"videos {key}", "every frame stands at the time of its row")]


def _check_pixels(recording: LeRobotRecording, key: str) -> Iterator[Finding]:
    """Statistics of pictures against some of them: those of many published folders are 15 to 50 times too small."""
    feature, folder = recording.feature(key), recording.folder
    stated = _stated(folder).get(feature.name, {}).get("std")
    try:
        deviation = np.asarray(stated, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return
    if deviation.size not in (1, 3):
        if stated is not None:
            yield Finding(
                "warning",
                f"statistics {key}",
                f"those of meta/stats.json have {deviation.size} numbers instead of 3",
                "nothing here uses them: pictures are scaled by 255",
            )
        return
    chosen = [
        folder.episodes[k] for k in np.linspace(0, len(folder.episodes) - 1, min(3, len(folder.episodes))).astype(int)
    ]
    source, seen = LeRobotFrames(folder, feature, chosen), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        for number, episode in enumerate(chosen):
            wanted = set(np.linspace(0, episode.length - 1, _SAMPLED // 3).astype(int).tolist())
            frames = (frame for block in source.blocks(number, 16) for frame in block)
            seen += [frame for step, frame in enumerate(frames) if step in wanted]
    true = np.stack(seen).astype(np.float64).std((0, 1, 2)) / 255.0
    if (deviation < true / 4).all():
        yield Finding(
            "warning",
            f"statistics {key}",
            f"meta/stats.json says a deviation of {deviation.mean():.3g}, and pixels have {true.mean():.3g}",
            "nothing here uses them: pictures are scaled by 255; other trainings would blow them up",
        )


def _check_statistics(recording: LeRobotRecording) -> Finding:
    stated = _stated(recording.folder)
    if not stated:
        return Finding("ok", "statistics", "there is no meta/stats.json, and nothing here needs one")
    lacking = [name for name, each in stated.items() if isinstance(each, dict) and not {"q01", "q99"} <= each.keys()]
    if lacking:
        return Finding(
            "note",
            "statistics",
            f"meta/stats.json has no quantiles q01 and q99 of {', '.join(lacking[:3])}",
            "nothing here needs them; trainings that scale by quantiles do",
        )
    return Finding("ok", "statistics", "meta/stats.json holds quantiles too")


def _stated(folder: LeRobotFolder) -> dict[str, Any]:
    """``meta/stats.json``; empty where there is none or it is not understood: nothing depends on it."""
    if not folder.exists("meta/stats.json"):
        return {}
    try:
        return folder.read_object("meta/stats.json")
    except DataError:
        return {}


def _check_convention(dataset: Dataset, recording: LeRobotRecording) -> Finding:
    said = dataset.spec.action
    if said.convention != UNSTATED:
        return Finding("ok", "action convention", f"stated: {said.convention}, frame {said.frame}")
    way, why = guess_way(dataset)
    kind, named = guess_kind(recording.action_names, tuple(recording.state_names))
    if not way:
        return Finding(
            "note", "action convention", f"unstated, and cannot be guessed: {why}", "ask who recorded the folder"
        )
    guess = f"{kind}-{way}" if kind else way
    flag = f"--data.action-convention {guess}" if kind else f"--data.action-convention joint-{way} or pose-{way}"
    return Finding(
        "note",
        "action convention",
        f"unstated; they look {way}: {why}; {named}",
        f"if you know it to be so: {flag}",
    )


def guess_way(dataset: Dataset) -> tuple[str, str]:
    """'absolute', 'delta' or nothing, and why: what actions have in common with the next state, and with its change."""
    action = dataset.steps[keys.ACTION][:_ROWS].double().numpy()
    states = [value[:_ROWS].double().numpy() for key, value in dataset.steps[keys.OBS].items() if key != INSTRUCTION]
    inside = (dataset.steps[keys.EPISODE][:_ROWS].diff() == 0).numpy()
    if not states or inside.sum() < 10:
        return "", "there are no states beside the actions"
    state = np.concatenate([value.reshape(len(value), -1) for value in states], axis=1)
    acted, change, following = action[:-1][inside], np.diff(state, axis=0)[inside], state[1:][inside]
    to_state, to_change = _correlations(acted, following), _correlations(acted, change)
    moving = acted.std(0) > 1e-9
    if not moving.any():
        return "", "no action ever changes"
    follow, alter = to_state.max(1)[moving], to_change.max(1)[moving]
    absolute = int(((follow > _FOLLOWS) & (follow > alter)).sum())
    delta = int(((alter > _BEST) & (alter > follow)).sum())
    count = int(moving.sum())
    shown = f"median correlation {np.median(follow):.2f} with the next state, {np.median(alter):.2f} with its change"
    if absolute * 2 > count and absolute > delta:
        return "absolute", f"{absolute} of {count} dimensions follow a number of the state, {shown}"
    if delta * 2 > count and delta > absolute:
        return "delta", f"{delta} of {count} dimensions follow the change of a number of the state, {shown}"
    return "", f"{absolute} of {count} dimensions follow a number of the state and {delta} its change, {shown}"


def guess_kind(action_names: Sequence[str], state_names: Sequence[str]) -> tuple[str, str]:
    """'joint', 'pose' or nothing, and why: by the names of the numbers."""
    for names, whose in ((action_names, "actions"), (state_names, "states")):
        joints = [name for name in names if _JOINTS.search(name)]
        poses = [name for name in names if _POSES.search(name) and name not in joints]
        if len(joints) > len(poses):
            return "joint", f"of joints: {whose} are called {', '.join(joints[:3])}"
        if len(poses) > len(joints):
            return "pose", f"of a pose: {whose} are called {', '.join(poses[:3])}"
    return "", "whether of joints or of a pose no name says"


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(p, q) correlations of the columns of (n, p) and (n, q); 0 where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.outer(np.sqrt((a**2).sum(0)), np.sqrt((b**2).sum(0)))
    found: NDArray[np.float64] = np.divide(a.T @ b, scale, out=np.zeros_like(scale), where=scale > 1e-12)
    return found
