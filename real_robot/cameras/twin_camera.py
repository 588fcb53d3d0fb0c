"""A camera of the twin: renders its MuJoCo scene off-screen, from the joint positions that the twin tells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, MissingExtraError, nearest
from flowpolicy.envs.camera_renderer import RenderSettings
from flowpolicy.envs.rendering import choose_opengl
from flowpolicy.real_robot.cameras.cameras import TWIN_RATE, TWIN_SIZE
from flowpolicy.real_robot.drivers.driver_protocols import CameraFacts, Frame, RobotError
from flowpolicy.real_robot.twin.twin import TwinLink


class TwinCamera:
    """Renders when asked, at most so many times a second.

    Args:
        camera: name in the scene: 'front' or 'wrist'.
        positions: where the scene's joints are, (16,); asks the twin unless given.
        size: width and height, pixels.
        rate: pictures per second.
        clock: the bridge's.

    Raises:
        RobotError: this machine cannot render off-screen.

    """

    def __init__(
        self,
        camera: str,
        positions: Callable[[], NDArray[Any]] | None = None,
        size: tuple[int, int] = TWIN_SIZE,
        rate: float = TWIN_RATE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        choose_opengl()
        try:
            import mujoco
        except ModuleNotFoundError as error:
            raise MissingExtraError("mujoco", "robosuite") from error
        from flowpolicy.real_robot.twin.twin_scene import build_scene

        self._forward, self._model = mujoco.mj_forward, build_scene()
        names = [self._model.camera(index).name for index in range(self._model.ncam)]
        if camera not in names:
            raise ConfigError(f"the twin has no camera '{camera}'", expected=nearest(camera, names))
        self._data, self._camera, self._clock = mujoco.MjData(self._model), camera, clock
        # What costs most and shows least: 15 ms instead of 120 ms for a pair without a graphics card.
        self._model.vis.quality.offsamples = 0
        try:
            self._renderer = mujoco.Renderer(self._model, size[1], size[0])
        except Exception as error:  # the bindings of each library of OpenGL raise their own
            raise RobotError(
                f"the scene cannot be rendered off-screen here ({type(error).__name__}: {error})",
                expected="EGL or OSMesa",
                fix="apt-get install libosmesa6 and set MUJOCO_GL=osmesa, or libegl1 libgl1-mesa-dri and MUJOCO_GL=egl",
            ) from error
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
        ):
            self._renderer.scene.flags[flag] = 0
        self._positions, self._link = positions, None if positions else TwinLink()
        self.latency_s, self._seq, self._due, self._period = 0.0, -1, 0.0, 1.0 / rate
        self.facts = _facts(self._model.camera(camera), self._model, size, rate)
        self._frame: Frame | None = None

    def start(self) -> None:
        """The first picture is rendered when it is asked for."""

    def latest(self) -> Frame:
        """The newest picture; a new one if a period has passed."""
        now = self._clock()
        if self._frame is None or now >= self._due:
            # By its own beat, whoever asks when; one that was missed is not made up for.
            self._due = max(self._due + self._period, now + 0.5 * self._period)
            self._data.qpos[:] = self._link.positions() if self._link else self._positions()  # type: ignore[misc]
            self._forward(self._model, self._data)
            self._renderer.update_scene(self._data, self._camera)
            self._seq += 1
            self._frame = Frame(self._seq, now, now, np.array(self._renderer.render()))
            self.latency_s = self._clock() - now
        return self._frame

    def close(self) -> None:
        """Free the renderer and the connection."""
        self._renderer.close()
        if self._link is not None:
            self._link.close()


def _facts(camera: Any, model: Any, size: tuple[int, int], rate: float) -> CameraFacts:
    """What the scene says of one of its cameras, drawn at a width and height."""
    width, height = size
    fov = float(camera.fovy[0])
    focal = round(0.5 * height / math.tan(math.radians(0.5 * fov)), 4)
    body = model.body(int(camera.bodyid[0])).name
    return CameraFacts(
        (focal, focal, 0.5 * (width - 1), 0.5 * (height - 1)),
        fov,
        rate,
        body,
        RenderSettings(geoms="collision").spec(),
    )
