"""Cameras: one time base, the newest picture only, dropped ones counted; and a camera that replays what was recorded.

A camera runs in a process of its own (:mod:`flowpolicy.real_robot.session.camera_process`) and writes into a ring of
shared memory; recorder and policy read the newest picture there and wait for none
(docs/methods/franka-control.md#cameras).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError
from flowpolicy.real_robot.cameras.camera_setup import CameraSetup
from flowpolicy.real_robot.drivers.driver_protocols import Camera, CameraFacts, Frame

TWIN_SIZE, TWIN_RATE = (128, 128), 20.0
"""Width and height, pixels, and pictures per second of the twin's cameras unless told otherwise."""
_WINDOW = 30.0  # s: long against jitter of the transport, short against drift of a quartz (1e-5: 0.3 ms)


class DeviceClock:
    """A camera's own time as the bridge's.

    A picture never arrives before it was sent: the smallest difference of the last half minute between arrival and time
    stamp is the clocks' difference plus the shortest way. What a picture took longer than that was waiting.

    Args:
        least: the shortest way from exposure to arrival, s.
        window: seconds over which the smallest difference is taken.

    """

    def __init__(self, least: float, window: float = _WINDOW) -> None:
        self._least, self._window = least, window
        self._smallest: deque[tuple[float, float]] = deque()  # (arrival, difference), differences growing
        self._newest = -np.inf

    def monotonic(self, t_device: float, t_arrival: float) -> float:
        """When a picture was exposed, s of the bridge's clock. A device whose time falls back begins anew."""
        if t_device < self._newest:
            self._smallest.clear()
        self._newest = t_device
        difference = t_arrival - t_device
        while self._smallest and self._smallest[-1][1] >= difference:
            self._smallest.pop()
        self._smallest.append((t_arrival, difference))
        while self._smallest[0][0] < t_arrival - self._window:
            self._smallest.popleft()
        return t_device + self._smallest[0][1] - self._least


class CameraLevels(NamedTuple):
    """How a camera fared."""

    frames: int
    dropped: int
    """Pictures that it took and nobody saw."""
    latency_p50: float
    """From exposure to availability, ms."""
    latency_p99: float
    period: float
    """Median between two exposures, ms."""

    def line(self, name: str) -> str:
        """For the console."""
        return (
            f"camera {name}: {self.frames} pictures, {self.dropped} dropped, every {self.period:.1f} ms, "
            f"latency {self.latency_p50:.1f} ms (p99 {self.latency_p99:.1f})"
        )


def camera_levels(seq: NDArray[Any], t_mono: NDArray[Any], t_seen: NDArray[Any]) -> CameraLevels:
    """Levels over pictures (n,) in order: their numbers, when they were exposed and when they were seen, s."""
    if not len(seq):
        return CameraLevels(0, 0, 0.0, 0.0, 0.0)
    gaps = np.diff(seq)
    latency = 1e3 * (t_seen - t_mono)
    period = 1e3 * float(np.median(np.diff(t_mono) / np.maximum(gaps, 1))) if len(seq) > 1 else 0.0
    p50, p99 = (float(np.percentile(latency, share)) for share in (50, 99))
    return CameraLevels(len(seq), int(np.maximum(gaps - 1, 0).sum()), p50, p99, period)


def recorded_levels(files: Iterable[Path]) -> dict[str, CameraLevels]:
    """Levels of every camera over recorded episodes; what a camera took between two episodes is nobody's loss."""
    from flowpolicy.data.hdf5 import open_hdf5

    kept: dict[str, list[NDArray[Any]]] = {}
    for path in files:
        with open_hdf5(path) as file:
            for name, camera in file["data/demo_0"].get("cameras", {}).items():
                numbers = camera["seq"][()]
                if len(numbers):
                    before = kept[name][-1][0, -1] + 1 if name in kept else 0
                    numbers = numbers - numbers[0] + before
                    kept.setdefault(name, []).append(np.stack([numbers, camera["t_mono"][()], camera["t_seen"][()]]))
    return {name: camera_levels(*np.concatenate(parts, axis=1)) for name, parts in kept.items()}


class ReplayCamera:
    """Shows recorded pictures at the pace at which they were taken.

    Args:
        rgb: (n, height, width, 3) uint8.
        times: (n,) s, growing; only their differences matter.
        latency_s: how much later than exposed a picture appears, s.
        clock: the bridge's.

    """

    def __init__(
        self,
        rgb: NDArray[Any],
        times: NDArray[Any],
        latency_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(rgb) != len(times) or not len(rgb) or rgb.shape[-1:] != (3,) or rgb.dtype != np.uint8:
            raise DataError(f"pictures {rgb.shape} {rgb.dtype} at {len(times)} times", expected="(n, h, w, 3) uint8")
        self._rgb, self._times = rgb, np.asarray(times, dtype=np.float64) - float(times[0])
        self.latency_s, self._clock, self.facts = latency_s, clock, CameraFacts()
        self._begun: float | None = None

    def start(self) -> None:
        """The first picture is exposed now."""
        self._begun = self._clock()

    def latest(self) -> Frame | None:
        """The newest picture that has appeared; the last one stays."""
        if self._begun is None:
            return None
        since = self._clock() - self._begun - self.latency_s
        seq = int(np.searchsorted(self._times, since + 1e-9, side="right")) - 1
        if seq < 0:
            return None
        t_device = float(self._times[seq])
        return Frame(seq, self._begun + t_device, t_device, self._rgb[seq])

    def close(self) -> None:
        """Nothing to do."""


def replay_from(path: Path, name: str, clock: Callable[[], float] = time.monotonic) -> ReplayCamera:
    """Camera ``name`` of a recorded episode file."""
    from flowpolicy.data.hdf5 import open_hdf5, read_array, require_group

    with open_hdf5(path) as file:
        demo = require_group(require_group(file, "data", path), "demo_0", path)
        rgb = read_array(require_group(demo, "obs", path), f"{name}_image", path)
        times = read_array(require_group(demo, "robot", path), "t_mono", path)
    return ReplayCamera(rgb, times, clock=clock)


def open_camera(setup: CameraSetup, clock: Callable[[], float] = time.monotonic) -> Camera:
    """The camera of a setup; libraries are imported here, each for its own kind.

    Args:
        setup: which one.
        clock: the bridge's.

    """
    if setup.kind == "twin":
        from flowpolicy.real_robot.cameras.twin_camera import TwinCamera

        return TwinCamera(setup.argument, None, setup.size or TWIN_SIZE, setup.rate or TWIN_RATE, clock)
    if setup.kind == "realsense":
        from flowpolicy.real_robot.cameras.realsense import RealSenseCamera

        return RealSenseCamera(setup.argument, setup.size or (640, 480), round(setup.rate or 30))
    if setup.kind in ("uvc", "video"):
        from flowpolicy.real_robot.cameras.opencv_cameras import UvcCamera, VideoCamera

        return UvcCamera(setup) if setup.kind == "uvc" else VideoCamera(Path(setup.argument), setup.rate, clock)
    file, hash_, recorded = setup.argument.partition("#")
    return replay_from(Path(file), recorded if hash_ else setup.name, clock)
