"""Intel RealSense by its library; never tried on a camera here."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.real_robot.cameras.cameras import DeviceClock
from flowpolicy.real_robot.drivers.driver_protocols import CameraFacts, Frame, RobotError

_WARM_UP = 30
_LEAST = 0.012
"""Shortest way from the middle of the exposure to the host, s: half an exposure of 8 ms, and read-out."""


class RealSenseCamera:
    """The colour stream of one camera, in a thread that keeps the newest picture.

    Exposure and white balance are frozen once they have settled: a policy has seen no other.

    Args:
        serial: number of the camera; 'any' for the only one.
        size: width and height, pixels.
        rate: pictures per second.

    Raises:
        RobotError: no such camera.

    """

    def __init__(self, serial: str, size: tuple[int, int] = (640, 480), rate: int = 30) -> None:
        try:
            import pyrealsense2
        except ModuleNotFoundError as error:
            raise MissingExtraError("pyrealsense2", "realsense") from error
        self._library, self._serial, self._size, self._rate = pyrealsense2, serial, size, rate
        self.facts = CameraFacts(rate_hz=float(rate))
        self._pipeline: Any = None
        self._frame: Frame | None = None
        self._clock, self.latency_s, self._open = DeviceClock(_LEAST), _LEAST, True

    def start(self) -> None:
        """Open the stream and wait for the exposure to settle."""
        library = self._library
        config, self._pipeline = library.config(), library.pipeline()
        if self._serial != "any":
            config.enable_device(self._serial)
        config.enable_stream(library.stream.color, *self._size, library.format.rgb8, self._rate)
        try:
            profile = self._pipeline.start(config)
            device = profile.get_device()
            known = profile.get_stream(library.stream.color).as_video_stream_profile().get_intrinsics()
            focal = (known.fx, known.fy, known.ppx, known.ppy)
            self.facts = CameraFacts(tuple(round(float(value), 3) for value in focal), rate_hz=float(self._rate))
            sensor = device.first_color_sensor()
            sensor.set_option(library.option.frames_queue_size, 1)
            for _ in range(_WARM_UP):
                self._pipeline.wait_for_frames(5000)
            for option in (library.option.enable_auto_exposure, library.option.enable_auto_white_balance):
                if sensor.supports(option):
                    sensor.set_option(option, 0)
        except RuntimeError as error:
            raise RobotError(
                f"camera {self._serial}: {error}", fix="look at its cable and at rs-enumerate-devices"
            ) from error
        threading.Thread(target=self._receive, daemon=True).start()

    def latest(self) -> Frame | None:
        """The newest picture; None before the first."""
        return self._frame

    def close(self) -> None:
        """End the stream."""
        self._open = False
        if self._pipeline is not None:
            self._pipeline.stop()
            self._pipeline = None

    def _receive(self) -> None:
        while self._open:
            try:
                color = self._pipeline.wait_for_frames(1000).get_color_frame()
            except (RuntimeError, AttributeError):  # no picture for a second, or closed meanwhile
                continue
            arrived, t_device = time.monotonic(), 1e-3 * color.get_timestamp()
            exposed = self._clock.monotonic(t_device, arrived)
            self._frame = Frame(color.get_frame_number(), exposed, t_device, np.array(color.get_data()))
