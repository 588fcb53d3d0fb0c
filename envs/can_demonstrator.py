"""Scripted demonstrator for robosuite's PickPlaceCan."""

from __future__ import annotations

import numpy as np

from flowpolicy.envs.pick_demonstrator import CLOSE, OPEN, PickDemonstrator, PickScene, Style, read_scene

_BIN = np.array([0.1975, 0.4025])  # centre of the can's compartment in the world frame, m
_HALF = np.array([0.0975, 0.1225])  # half its size
_WITHIN_REACH = np.array([0.165, 0.352])  # the stretched arm cannot set down much further away
_SET_DOWN = 0.89  # the can's centre is at 0.86 when it stands on the floor


class CanDemonstrator(PickDemonstrator):
    """Grasp the can at any yaw, carry it over the walls of the bins, set it down and withdraw."""

    usual_steps = 120
    grasped_opening = 0.066
    tolerance = 2.0
    top = 0.04

    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        super().__init__(style, rng)
        self._spot = _WITHIN_REACH + rng.uniform(-0.012, 0.012, size=2)
        self._height = rng.uniform(1.02, 1.08)
        self._turn = float(np.clip(rng.normal(scale=0.3), -0.7, 0.7))
        if style.free_choice:
            self._turn = float(rng.choice([-0.6, 0.6]) + rng.normal(scale=0.05))

    def look(self, obs: dict[str, np.ndarray]) -> PickScene:
        """The scene: ``object`` holds the can's relative pose (7) and then its pose (7)."""
        return read_scene(obs, obs["object"][7:10], obs["object"][10:14])

    def grasp_yaws(self, scene: PickScene) -> np.ndarray:
        """One drawn yaw for an upright can; across its axis when it has fallen over."""
        axis = scene.thing_rotation.apply([0.0, 0.0, 1.0])
        if abs(axis[2]) > 0.7:
            return np.array([self._turn])
        return np.arctan2(axis[1], axis[0]) + np.arange(2) * np.pi

    def decide(self, scene: PickScene) -> np.ndarray:
        """Let go of a can that is low in its compartment and withdraw upwards; otherwise pick it."""
        inside = np.all(np.abs(scene.thing[:2] - _BIN) < _HALF - 0.01)
        if inside and scene.thing[2] < _SET_DOWN + 0.015:
            rise = 0.08 * np.clip((scene.opening - self.grasped_opening) / 0.006, 0.0, 1.0)
            return self.towards(scene, scene.hand + np.array([0.0, 0.0, rise]), OPEN)
        return super().decide(scene)

    def carry(self, scene: PickScene) -> np.ndarray:
        """Up, across once above the walls, and down above the spot."""
        across = self._spot - scene.thing[:2]
        distance = np.linalg.norm(across)
        raised = np.clip((scene.hand[2] - 0.94) / 0.06, 0.0, 1.0) if distance > 0.1 else 1.0
        far = np.clip((distance - 0.02) / 0.08, 0.0, 1.0)
        height = _SET_DOWN - 0.015 + (self._height - _SET_DOWN) * far
        goal = np.array([*(scene.hand[:2] + raised * self.detour(across)), height])
        return self.towards(scene, goal, CLOSE)
