"""Any camera that Linux knows (V4L2), and video files, through OpenCV; tried on files and a stand-in, on no device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, DataError, MissingExtraError
from flowpolicy.real_robot.cameras.camera_setup import CameraSetup
from flowpolicy.real_robot.cameras.cameras import DeviceClock
from flowpolicy.real_robot.drivers.driver_protocols import CameraFacts, Frame, RobotError

_LEAST = 0.010
"""Shortest way from the middle of the exposure to the host, s: half an exposure of a thirtieth's half, and read-out."""
_SILENT = 5.0  # s without a first picture
_SEVERAL = 3  # failed reads in a row after which the device counts as unplugged and is opened anew
_MANUAL, _AUTOMATIC = 1, 3  # V4L2_CID_EXPOSURE_AUTO


class UvcCamera:
    """A camera of V4L2, in a thread that keeps the newest picture.

    A device that is unplugged gives no more pictures, which its readers see by their age; it is opened anew as soon as
    it is there again.

    Args:
        setup: the device: a stable path of /dev/v4l/by-id or by-path, or a number; size, rate and exposure.
        capture: opens the device; that of OpenCV unless given.
        clock: the bridge's.

    Raises:
        RobotError: no such device, or it gives no picture.

    """

    def __init__(
        self,
        setup: CameraSetup,
        capture: Callable[[str], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cv2 = _opencv()
        self._setup, self._open = setup, capture or self._v4l2
        self._capture: Any = None
        self._frame: Frame | None = None
        self._running, self._seq, self._now = True, -1, clock
        self._clock, self.latency_s, self.facts = DeviceClock(_LEAST), _LEAST, CameraFacts(rate_hz=setup.rate or 0.0)

    def start(self) -> None:
        """Open the device and wait for its first picture."""
        self._begin()
        threading.Thread(target=self._receive, daemon=True).start()
        deadline = self._now() + _SILENT
        while self._frame is None:
            if self._now() > deadline:
                self.close()
                raise RobotError(
                    f"the camera {self._setup.argument} gave no picture within {_SILENT:g} s",
                    fix="look at its cable, and whether another program uses it: fuser -v /dev/video*",
                )
            time.sleep(0.01)

    def latest(self) -> Frame | None:
        """The newest picture; None before the first."""
        return self._frame

    def close(self) -> None:
        """End the stream."""
        self._running = False

    def _v4l2(self, device: str) -> Any:
        return self._cv2.VideoCapture(int(device) if device.isdigit() else device, self._cv2.CAP_V4L2)

    def _begin(self) -> None:
        cv2, setup = self._cv2, self._setup
        capture = self._open(setup.argument)
        if not capture.isOpened():
            raise RobotError(
                f"the camera {setup.argument} cannot be opened",
                expected="a device of V4L2; ls -l /dev/v4l/by-id shows names that stay the same",
                fix="look at its cable, and whether this user is in the group 'video'",
            )
        wanted: list[tuple[str, int, float]] = [("one picture in hand", cv2.CAP_PROP_BUFFERSIZE, 1)]
        if setup.size:
            wanted += [("width", cv2.CAP_PROP_FRAME_WIDTH, setup.size[0])]
            wanted += [("height", cv2.CAP_PROP_FRAME_HEIGHT, setup.size[1])]
        if setup.rate:
            wanted.append(("rate", cv2.CAP_PROP_FPS, setup.rate))
        if setup.exposure:
            wanted.append(("manual exposure", cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL))
            wanted.append(("exposure", cv2.CAP_PROP_EXPOSURE, setup.exposure))
        for _, key, value in wanted:
            capture.set(key, value)
        # A driver takes the nearest that it can do without a word; what decides pictures must be what was asked for.
        for what, key, value in wanted[1:]:
            if abs((found := capture.get(key)) - value) > 0.01 * value:
                capture.release()
                raise ConfigError(
                    f"the camera {setup.argument} does not take {what} {value:g}, it says {found:g}",
                    fix=f"what it can do: v4l2-ctl -d {setup.argument} -L",
                )
        self._capture = capture

    def _receive(self) -> None:
        failed = 0
        while self._running:
            taken, bgr = self._capture.read() if self._capture is not None else (False, None)
            if taken and bgr is not None:
                failed = 0
                arrived, t_device = self._now(), 1e-3 * float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))
                # The buffer's time stamp, where the driver gives one; else when it arrived.
                exposed = self._clock.monotonic(t_device, arrived) if t_device > 0.0 else arrived - _LEAST
                self._seq += 1
                self._frame = Frame(self._seq, exposed, t_device, _turned(bgr))
                continue
            failed += 1
            if failed >= _SEVERAL:
                self._again()
        if self._capture is not None:
            self._capture.release()

    def _again(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        time.sleep(0.2)
        try:
            self._begin()
        except (RobotError, ConfigError):
            return


class VideoCamera:
    """A video file as a camera: its pictures at the pace at which they were filmed, the last one stays.

    Args:
        path: of the file.
        rate: pictures per second; the file's own unless given.
        clock: the bridge's.

    Raises:
        DataError: it is no video, or says no rate.

    """

    def __init__(self, path: Path, rate: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        cv2 = _opencv()
        if not path.is_file():
            raise DataError(f"{path} is no file", expected="a video: NAME=video:FILE.mp4")
        self._capture: Any = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        own = float(self._capture.get(cv2.CAP_PROP_FPS))
        taken, first = self._capture.read()
        if not taken or not (rate or own > 0.0):
            self._capture.release()
            raise DataError(f"{path} is no video that can be read", expected="pictures, and their rate (rate=HZ)")
        self._period = 1.0 / (rate or own)
        self._clock, self.latency_s, self.facts = clock, 0.0, CameraFacts(rate_hz=1.0 / self._period)
        self._begun: float | None = None
        self._seq, self._rgb = 0, _turned(first)

    def start(self) -> None:
        """The first picture is exposed now."""
        self._begun = self._clock()

    def latest(self) -> Frame | None:
        """The newest picture; pictures that were missed are read over."""
        if self._begun is None:
            return None
        wanted = int((self._clock() - self._begun) / self._period + 1e-6)
        while self._seq < wanted and self._capture is not None:
            taken, bgr = self._capture.read()
            if not taken:
                self.close()
                break
            self._seq, self._rgb = self._seq + 1, _turned(bgr)
        t_device = self._seq * self._period
        return Frame(self._seq, self._begun + t_device, t_device, self._rgb)

    def close(self) -> None:
        """Close the file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _turned(bgr: NDArray[Any]) -> NDArray[np.uint8]:
    """OpenCV's blue green red as red green blue."""
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError("opencv-python-headless", "cameras") from error
    return cv2
