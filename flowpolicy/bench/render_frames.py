"""Processor time of a picture by how it is drawn, in turn on the same states."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from flowpolicy.envs.camera_renderer import AS_ROBOSUITE, FAST, CameraRenderer, RenderSettings
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv


def bench_render(
    cameras: Sequence[str] = ("agentview", "robot0_eye_in_hand"), size: int = 84, states: int = 8
) -> dict[str, Any]:
    """Milliseconds of processor time of a picture of robosuite's Lift, median over states, by setting and camera.

    Args:
        cameras: of the scene.
        size: pixels a side.
        states: initial states; every setting draws each of them, one after the other.

    """
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software OpenGL draws with as many threads as there are cores
    env = RobosuiteEnv.create(RobosuiteConfig())
    model, data = env.sim_env.sim.model._model, env.sim_env.sim.data._data
    settings = {
        "as robosuite draws": AS_ROBOSUITE,
        "without reflections": RenderSettings(msaa=4),
        "without multisampling": dataclasses.replace(AS_ROBOSUITE, msaa=0),
        "fast, nothing left out": FAST,
        "fast": FAST,
        "collision shapes": RenderSettings(geoms="collision"),
    }
    renderers = {name: CameraRenderer(model, data, each) for name, each in settings.items()}
    for name in ("fast, nothing left out", "without reflections"):
        renderers[name].culls = False
    spent: dict[str, list[float]] = {f"{name}, {camera}": [] for name in settings for camera in cameras}
    for index in range(-1, states):  # the first makes buffers
        env.reset(index + 1)
        for camera in cameras:
            for name, renderer in renderers.items():
                start = time.process_time()
                renderer.draw(camera, size, size)
                if index >= 0:
                    spent[f"{name}, {camera}"].append(1e3 * (time.process_time() - start))
    found = {name: float(np.median(values)) for name, values in spent.items()}
    return {"milliseconds": found, "size": size, "states": states, "load_average": os.getloadavg()[0]}


def render_table(result: Mapping[str, Any]) -> Table:
    """The figures of :func:`bench_render`."""
    table = Table(title=f"one picture of {result['size']} x {result['size']}, ms of processor time")
    table.add_column("drawn, by camera")
    table.add_column("ms", justify="right")
    for name, value in result["milliseconds"].items():
        table.add_row(name, f"{value:.1f}")
    return table
