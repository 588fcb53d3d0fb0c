"""OpenGL without a display."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator

from flowpolicy.core.errors import SimulatorError

_EGL = "libEGL.so.1"


def choose_opengl() -> None:
    """Render through EGL where there is no display, unless ``MUJOCO_GL`` says otherwise; without libEGL not at all.

    To be called before mujoco is imported, which reads the variable once and fails where the library is missing,
    also for those who want no pictures.
    """
    wanted = os.environ.get("MUJOCO_GL") or ("" if "DISPLAY" in os.environ else "egl")
    if wanted == "egl" and not _loads(_EGL):
        os.environ["MUJOCO_GL"] = "disable"
        with contextlib.suppress(ModuleNotFoundError):  # an adapter says which extra is missing
            importlib.import_module("mujoco")  # now: robosuite sets the variable back to egl
    elif wanted:
        os.environ["MUJOCO_GL"] = wanted


def require_opengl() -> None:
    """Start and stop a renderer, so that hours of work do not end in a missing library.

    Raises:
        SimulatorError: OpenGL cannot be started; names the packages.

    """
    choose_opengl()
    with opengl():
        import mujoco

        mujoco.GLContext(16, 16).free()


@contextlib.contextmanager
def opengl() -> Iterator[None]:
    """Create a renderer inside; a missing library becomes an error that names the packages."""
    try:
        if os.environ.get("MUJOCO_GL") in ("egl", "disable"):
            ctypes.CDLL(_EGL)
        yield
    except Exception as error:  # PyOpenGL raises whatever the missing library makes it raise
        raise SimulatorError(
            f"no picture: OpenGL cannot be started (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}): {error}",
            fix="apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0, or do without video",
        ) from error


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
