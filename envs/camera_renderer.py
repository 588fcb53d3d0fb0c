"""Pictures of a MuJoCo scene, off screen: as fast as a processor can, or exactly as robosuite draws them.

What costs is not pixels. MuJoCo draws the whole scene again for every reflective material, a multisampled buffer
doubles the rest, and of robosuite's hundreds of thousands of triangles most are outside the picture: without the first
two and with only what the camera can see, a frame of 84 x 84 takes about a seventh of the time. Leaving out what cannot
be seen changes no pixel; the other two do, so that a policy's contract says how its pictures were drawn.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.spec import UNSTATED, RenderSpec
from flowpolicy.envs.rendering import choose_opengl, opengl

_HIDDEN = 5
"""A group of geoms that is never drawn; robosuite uses 0 (collision) and 1 (visual)."""


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How a scene is drawn."""

    reflections: bool = False
    """Whether reflective materials mirror the scene, which draws it again."""
    shadows: bool = False
    """Whether lights cast the shadows that the scene asks for; robosuite's cast none."""
    msaa: int = 0
    """Samples per pixel against jagged edges; 0 for none. A graphics library may take fewer."""
    geoms: Literal["visual", "collision"] = "visual"
    """Which shapes: the 'visual' meshes, or the few boxes and capsules that collide."""

    def __post_init__(self) -> None:
        if self.geoms not in ("visual", "collision") or not 0 <= self.msaa <= 16:
            raise ConfigError(f"{self}", expected="geoms visual or collision, msaa from 0 to 16")

    def spec(self) -> RenderSpec:
        """What a contract says of it."""
        try:
            version = metadata.version("mujoco")
        except metadata.PackageNotFoundError:
            version = UNSTATED
        return RenderSpec(
            library="mujoco",
            version=version,
            geoms=self.geoms,
            msaa=self.msaa,
            reflections="on" if self.reflections else "off",
            shadows="on" if self.shadows else "off",
        )

    @classmethod
    def of(cls, spec: RenderSpec | None) -> RenderSettings:
        """The settings that a contract asks for; what it does not say is the default."""
        if spec is None:
            return cls()
        return cls(
            reflections=spec.reflections == "on",
            shadows=spec.shadows == "on",
            msaa=spec.msaa if spec.msaa >= 0 else cls.msaa,
            geoms=spec.geoms or cls.geoms,
        )


FAST = RenderSettings()
"""What pictures are drawn by unless somebody asks for something else."""
AS_ROBOSUITE = RenderSettings(reflections=True, shadows=True, msaa=4)
"""The same pixels as robosuite's own camera observations."""
RENDERERS = {"fast": FAST, "exact": AS_ROBOSUITE, "collision": RenderSettings(geoms="collision")}
"""By the names of the command line."""


class CameraRenderer:
    """Draws one model by its cameras.

    Meshes and textures take a quarter of a gigabyte: all renderers of a process that draw equal models share them.

    What is drawn is where things are now, and drawing touches nothing of the simulation. MuJoCo's own positions of
    bodies are those of before its last substep: pictures of them would not be those that are drawn from stored states.

    Args:
        model: of MuJoCo.
        data: its state, drawn as it is at that moment.
        settings: how to draw.

    """

    def __init__(self, model: Any, data: Any, settings: RenderSettings = FAST) -> None:
        import mujoco

        self._mujoco, self._model, self._simulated, self.settings = mujoco, model, data, settings
        self._data = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom))
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = settings.reflections
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = settings.shadows
        self._option, self._perturbation, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._option.geomgroup[0 if settings.geoms == "visual" else 1] = 0
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._groups = model.geom_group.copy()
        # A mirror or a shadow shows what is outside the picture.
        casting = settings.shadows and bool(model.light_castshadow.any())
        self.culls = not settings.reflections and not casting
        self._content = _content(model)

    def draw(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) RGB, rows top down.

        Raises:
            ConfigError: the model has no such camera.
            SimulatorError: OpenGL cannot be started.

        """
        mujoco, number = self._mujoco, camera_number(self._model, camera)
        self._arrange(number, width / height)
        rectangle, pixels = mujoco.MjrRect(0, 0, width, height), np.empty((height, width, 3), dtype=np.uint8)
        with _opengl_current():
            buffer = self._buffer(height, width)
            mujoco.mjr_render(rectangle, self._scene, buffer)
            mujoco.mjr_readPixels(pixels, None, rectangle, buffer)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's rows run bottom up

    def _arrange(self, camera: int, aspect: float) -> None:
        """Put into the scene what the camera can see."""
        mujoco, self._camera.fixedcamid = self._mujoco, camera
        for place in ("qpos", "mocap_pos", "mocap_quat"):
            getattr(self._data, place)[:] = getattr(self._simulated, place)
        for step in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight, mujoco.mj_tendon):
            step(self._model, self._data)
        every = mujoco.mjtCatBit.mjCAT_ALL
        if self.culls:
            self._model.geom_group[~visible(self._model, self._data, camera, aspect)] = _HIDDEN
        try:
            mujoco.mjv_updateScene(
                self._model, self._data, self._option, self._perturbation, self._camera, every, self._scene
            )
        finally:
            self._model.geom_group[:] = self._groups

    def _buffer(self, height: int, width: int) -> Any:
        """What MuJoCo draws into, with meshes and textures, at the asked size."""
        key = self._content, self.settings.msaa
        if key not in _buffers:
            while len(_buffers) >= _MOST_BUFFERS:
                _buffers.popitem(last=False)[1].free()
            quality = self._model.vis.quality
            before, quality.offsamples = quality.offsamples, self.settings.msaa
            try:
                with opengl():
                    _buffers[key] = self._mujoco.MjrContext(self._model, self._mujoco.mjtFontScale.mjFONTSCALE_100)
            finally:
                quality.offsamples = before
        _buffers.move_to_end(key)
        buffer = _buffers[key]
        if (buffer.offHeight, buffer.offWidth) != (height, width):
            self._mujoco.mjr_resizeOffscreen(width, height, buffer)
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, buffer)
        return buffer


def camera_number(model: Any, camera: str) -> int:
    """Number of a camera in the model; :class:`ConfigError` names the cameras that there are."""
    names = [model.camera(number).name for number in range(model.ncam)]
    if camera not in names:
        raise ConfigError(f"the scene has no camera '{camera}'", expected=nearest(camera, names))
    return names.index(camera)


def visible(model: Any, data: Any, camera: int, aspect: float) -> NDArray[np.bool_]:
    """(geoms,) whether a geom's bounding sphere reaches into what a camera sees; unbounded ones always do.

    Args:
        model: of MuJoCo.
        data: its state after kinematics.
        camera: number.
        aspect: width of the picture over its height.

    """
    # In the camera's frame x is right, y up, and it looks along -z.
    centres = (data.geom_xpos - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
    depth, radii = -centres[:, 2], model.geom_rbound
    up = np.radians(model.cam_fovy[camera]) / 2
    inside = depth + radii >= 0
    for angle, offset in ((np.arctan(aspect * np.tan(up)), centres[:, 0]), (up, centres[:, 1])):
        inside &= np.abs(offset) * np.cos(angle) - depth * np.sin(angle) <= radii
    seen: NDArray[np.bool_] = inside | (radii <= 0)
    return seen


_MOST_BUFFERS = 4
_buffers: collections.OrderedDict[tuple[str, int], Any] = collections.OrderedDict()
"""(content of a model, samples) -> its meshes and textures in OpenGL, least recently used first."""


def _content(model: Any) -> str:
    """Hash of everything in a model."""
    import mujoco

    content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.blake2b(content.data).hexdigest()


@contextlib.contextmanager
def _opengl_current() -> Iterator[None]:
    """Draw inside with this process's own OpenGL context, of which there is one; what was current before is so again.

    Another program in the process, such as an environment of robosuite with cameras of its own, expects its context to
    be current, and a context can be current in one thread alone.
    """
    choose_opengl()
    if os.environ.get("MUJOCO_GL") != "egl":
        _opengl_context().make_current()
        yield
        return
    with opengl():
        from OpenGL import EGL

    # Before ours is created, which takes the current one away.
    before, display = EGL.eglGetCurrentContext(), EGL.eglGetCurrentDisplay()
    surfaces = [EGL.eglGetCurrentSurface(which) for which in (EGL.EGL_DRAW, EGL.EGL_READ)]
    try:
        _opengl_context().make_current()
        yield
    finally:
        if before:
            EGL.eglMakeCurrent(display, *surfaces, before)
        elif own := EGL.eglGetCurrentDisplay():
            EGL.eglMakeCurrent(own, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT)


@functools.cache
def _opengl_context() -> Any:
    with opengl():
        if os.environ.get("MUJOCO_GL") == "egl":  # which mujoco may not know: it reads the variable when it is imported
            from mujoco.egl import GLContext
        else:
            from mujoco import GLContext
        context = GLContext(16, 16)
    atexit.register(_release, context)
    return context


def _release(context: Any) -> None:
    """Free the context while its library still stands; another program in the process may have closed the display."""
    _buffers.clear()
    with contextlib.suppress(Exception):
        context.free()
    context._context = None  # nothing is left to free when the interpreter collects it
