"""A camera as a process: ``python -m flowpolicy.real_robot.session.camera_process OPTIONS``."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.files import replacing
from flowpolicy.real_robot.bridge.ring_records import FRAMES, frame_type, session_folder
from flowpolicy.real_robot.bridge.shared_ring import Ring
from flowpolicy.real_robot.cameras.cameras import open_camera
from flowpolicy.real_robot.drivers.driver_protocols import Camera
from flowpolicy.real_robot.session.launch import orphaned, read_options

_POLL = 0.004


class CameraWriter:
    """Copies each new picture of a camera into a ring, made when the first has told its size.

    Args:
        camera: started.
        folder: of the session.
        name: of the camera.
        clock: the bridge's.

    """

    def __init__(self, camera: Camera, folder: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._camera, self._folder, self._name, self._clock = camera, folder, name, clock
        self._ring: Ring | None = None
        self._record: Any = None

    def step(self) -> bool:
        """Copy the newest picture if it is new; whether it was."""
        frame = self._camera.latest()
        if frame is None or (self._record is not None and frame.seq == int(self._record["seq"])):
            return False
        if self._ring is None:
            self._make(frame.rgb.shape)
        record = self._record
        record["seq"], record["t_mono"], record["t_device"] = frame.seq, frame.t_mono, frame.t_device
        # After the camera has answered: taking or rendering a picture is most of its latency.
        record["t_seen"], record["rgb"] = self._clock(), frame.rgb
        self._ring.write(record)  # type: ignore[union-attr]
        return True

    def _make(self, shape: tuple[int, ...]) -> None:
        dtype = frame_type(shape[0], shape[1])
        self._ring, self._record = (
            Ring(ring_path(self._folder, self._name), dtype, FRAMES, create=True),
            np.zeros((), dtype),
        )
        # Last: who finds it finds the ring.
        with replacing(size_path(self._folder, self._name)) as temporary:
            temporary.write_text(json.dumps(shape[:2]), encoding="utf-8")


def ring_path(folder: Path, name: str) -> Path:
    """Where the pictures of a camera are."""
    return folder / f"camera_{name}"


def size_path(folder: Path, name: str) -> Path:
    """Height and width of a camera's pictures, once there are any."""
    return folder / f"camera_{name}.json"


def main() -> None:
    """Run until SIGTERM."""
    setup, options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    name, camera = open_camera(options["camera"])
    camera.start()
    writer = CameraWriter(camera, session_folder(setup.session), name)
    try:
        while not orphaned():
            writer.step()
            time.sleep(_POLL)
    finally:
        camera.close()


if __name__ == "__main__":
    main()
