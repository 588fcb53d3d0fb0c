"""OpenGL without a display."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from flowpolicy.core.errors import SimulatorError


def choose_opengl() -> None:
    """Render through EGL where there is no display, unless ``MUJOCO_GL`` says otherwise.

    To be called before mujoco is imported, which reads the variable once.
    """
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")


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
        if os.environ.get("MUJOCO_GL") == "egl":
            ctypes.CDLL("libEGL.so.1")
        yield
    except Exception as error:  # PyOpenGL raises whatever the missing library makes it raise
        raise SimulatorError(
            f"no picture: OpenGL cannot be started (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}): {error}",
            fix="apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0, or do without video",
        ) from error
