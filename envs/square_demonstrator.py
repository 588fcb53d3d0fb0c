"""Scripted demonstrator for robosuite's NutAssemblySquare."""

from __future__ import annotations

import numpy as np

from flowpolicy.envs.pick_demonstrator import CLOSE, OPEN, PickDemonstrator, PickScene, Style, heading, read_scene, wrap

_PEG = np.array([0.23, 0.10])  # axis of the square peg in the world frame, m
_PEG_TOP = 0.95
_ON_THE_TABLE = 0.83  # height of the nut's centre when it lies at the foot of the peg
_HANDLE = 0.054  # from the centre of the nut to that of its handle, along the nut's x axis, m
_PLAY = 0.006  # the hole is this much wider than the peg on either side, m


class SquareDemonstrator(PickDemonstrator):
    """Grasp the nut by its handle, turn it by the smallest angle that fits the peg, put it over and let go."""

    usual_steps = 130
    grasped_opening = 0.036  # the handle is 0.032 m across
    tolerance = 1.3

    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        super().__init__(style, rng)
        self._height = rng.uniform(0.99, 1.04)
        self._nut = np.zeros(3)

    def look(self, obs: dict[str, np.ndarray]) -> PickScene:
        """The scene, whose thing is the handle: ``object`` holds the nut's relative pose (7) and then its pose (7)."""
        scene = read_scene(obs, obs["object"][7:10], obs["object"][10:14])
        self._nut = scene.thing
        handle = scene.thing + scene.thing_rotation.apply([_HANDLE, 0.0, 0.0])
        return read_scene(obs, handle, obs["object"][10:14])

    def grasp_yaws(self, scene: PickScene) -> np.ndarray:
        """The two yaws at which the fingers close across the handle."""
        return heading(scene.thing_rotation) + np.arange(2) * np.pi

    def decide(self, scene: PickScene) -> np.ndarray:
        """Let go of a nut that is around the peg and withdraw upwards; otherwise pick it."""
        if self._aside() < 0.02 and self._nut[2] < _PEG_TOP - 0.03:
            rise = 0.12 * np.clip((scene.opening - self.grasped_opening) / 0.006, 0.0, 1.0)
            return self.towards(scene, scene.hand + np.array([0.0, 0.0, rise]), OPEN)
        return super().decide(scene)

    def carry(self, scene: PickScene) -> np.ndarray:
        """Up, across and turned once above the peg, and down over it where hole and peg agree."""
        turn = _shortest_turn(heading(scene.thing_rotation))
        distance = self._aside()
        low = np.clip((_PEG_TOP + 0.03 - self._nut[2]) / 0.03, 0.0, 1.0) if distance > 0.04 else 0.0
        misfit = max(distance - 0.8 * _PLAY, 0.0) + 0.03 * max(abs(turn) - 0.05, 0.0)
        height = _PEG_TOP - 0.06 + (self._height - _PEG_TOP + 0.06) * np.clip(misfit / 0.01, 0.0, 1.0)
        move = np.array([*((1 - low) * self.detour(_PEG - self._nut[:2])), height - self._nut[2]])
        self._yaw = scene.yaw + (1 - low) * turn
        return self.towards(scene, scene.hand + move, CLOSE)

    def _aside(self) -> float:
        """How far the nut's axis is from the peg's, m."""
        return float(np.linalg.norm(_PEG - self._nut[:2]))


def _shortest_turn(angle: float) -> float:
    """The smallest turn after which the hole fits the peg and the handle does not point away from the robot.

    The arm does not reach behind the peg: the hand would have to be 0.84 m before its base.
    """
    return min((float(wrap(goal - angle)) for goal in (np.pi / 2, np.pi, -np.pi / 2)), key=abs)
