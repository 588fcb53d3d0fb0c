"""A camera as a process: ``python -m flowpolicy.real_robot.session.camera_process OPTIONS``."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import ContractError, DataError
from flowpolicy.core.files import replacing
from flowpolicy.core.spec import ImageSpec, image_json, read_image
from flowpolicy.data.hdf5_frames import SUFFIX
from flowpolicy.real_robot.bridge.ring_records import FRAMES, TOLD, frame_type, session_folder
from flowpolicy.real_robot.bridge.shared_ring import Ring
from flowpolicy.real_robot.cameras.camera_setup import CameraSetup, parse_camera
from flowpolicy.real_robot.cameras.camera_watch import CameraWatch
from flowpolicy.real_robot.cameras.cameras import open_camera
from flowpolicy.real_robot.drivers.driver_protocols import Camera
from flowpolicy.real_robot.drivers.priority import step_back
from flowpolicy.real_robot.session.launch import orphaned, read_options, run_process

_POLL = 0.004


class CameraWriter:
    """Copies each new picture of a camera into a ring, cropped and resized; made when the first has told its size.

    Args:
        camera: started.
        setup: what becomes of its pictures.
        folder: of the session.
        clock: the bridge's.

    """

    def __init__(
        self, camera: Camera, setup: CameraSetup, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._camera, self._setup, self._folder, self._clock = camera, setup, folder, clock
        self._ring: Ring | None = None
        self._record: Any = None

    def step(self) -> bool:
        """Copy the newest picture if it is new; whether it was."""
        frame = self._camera.latest()
        if frame is None or (self._record is not None and frame.seq == int(self._record["seq"])):
            return False
        told = ""
        try:
            seen = self._setup.shaped(frame.rgb)
            if self._record is not None and seen.shape != self._record["rgb"].shape:
                told = f"takes pictures of {_said(seen.shape)} instead of {_said(self._record['rgb'].shape)}"
        except DataError as error:
            if self._record is None:
                raise
            told = error.what
        if self._ring is None:
            self._make(frame.rgb.shape[:2], seen.shape[:2])
        record = self._record
        record["seq"], record["t_mono"], record["t_device"] = frame.seq, frame.t_mono, frame.t_device
        record["told"] = told.encode()[:TOLD]
        if not told:
            record["rgb"] = seen
        # After the camera has answered: taking or rendering a picture is most of its latency.
        record["t_seen"] = self._clock()
        self._ring.write(record)  # type: ignore[union-attr]
        return True

    def close(self) -> None:
        """End the camera."""
        self._camera.close()

    def _make(self, taken: tuple[int, ...], seen: tuple[int, ...]) -> None:
        dtype = frame_type(seen[0], seen[1])
        self._ring, self._record = (
            Ring(ring_path(self._folder, self._setup.name), dtype, FRAMES, create=True),
            np.zeros((), dtype),
        )
        facts = self._camera.facts
        setup = self._setup if self._setup.intrinsics else dataclasses.replace(self._setup, intrinsics=facts.intrinsics)
        image = setup.spec((taken[0], taken[1]), (seen[0], seen[1]))
        image = dataclasses.replace(
            image,
            rate_hz=image.rate_hz or facts.rate_hz,
            fov_deg=0.0 if image.crop else facts.fov_deg,
            mount=facts.mount,
            render=facts.render,
        )
        # Last: who finds it finds the ring.
        with replacing(image_path(self._folder, self._setup.name)) as temporary:
            temporary.write_text(json.dumps(image_json(image)), encoding="utf-8")


def _said(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def ring_path(folder: Path, name: str) -> Path:
    """Where the pictures of a camera are."""
    return folder / f"camera_{name}"


def image_path(folder: Path, name: str) -> Path:
    """Where it is said what the pictures of a camera are, once there are any."""
    return folder / f"camera_{name}.json"


def stated_camera(folder: Path, name: str) -> ImageSpec:
    """What the pictures of a running camera are."""
    path = image_path(folder, name)
    return read_image(json.loads(path.read_text(encoding="utf-8")), str(path))


def open_ring(folder: Path, name: str, image: ImageSpec) -> Ring:
    """The pictures of a running camera, to be read."""
    return Ring(ring_path(folder, name), frame_type(image.height, image.width), FRAMES)


def open_watches(folder: Path, images: Mapping[str, ImageSpec], noisy: Collection[str]) -> dict[str, CameraWatch]:
    """Watches over the cameras of a running session that a policy sees by, by observation.

    Args:
        folder: of the session.
        images: what the policy sees.
        noisy: cameras no two pictures of which are alike.

    Raises:
        ContractError: a camera does not run, or its pictures are of another size.

    """
    found = {}
    for key, wanted in images.items():
        name = key.removesuffix(SUFFIX)
        if not image_path(folder, name).exists():
            raise ContractError(
                f"the policy sees by the camera '{name}', and none of this name runs",
                fix=f"--cameras {name}=KIND:ARGUMENT ...",
            )
        image = stated_camera(folder, name)
        if image.shape != wanted.shape:
            raise ContractError(
                f"the policy sees pictures {wanted.shape} of the camera '{name}', and it gives {image.shape}",
                fix=f"--cameras {name}=...,resize={wanted.width}x{wanted.height}, with the crop of the recordings",
            )
        found[key] = CameraWatch(name, open_ring(folder, name, image), name in noisy)
    return found


def main() -> None:
    """Run until SIGTERM."""
    setup, options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    step_back()
    camera_setup = parse_camera(options["camera"])
    camera = open_camera(camera_setup)
    camera.start()
    writer = CameraWriter(camera, camera_setup, session_folder(setup.session))
    try:
        while not orphaned():
            writer.step()
            time.sleep(_POLL)
    finally:
        writer.close()


if __name__ == "__main__":
    run_process(main)
