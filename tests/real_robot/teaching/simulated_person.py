"""Somebody who does a task with a device in the hand: looks at the newest tick, and moves cap or sticks."""

import numpy as np

from flowpolicy.real_robot.arm.kinematics import rotation_error
from flowpolicy.real_robot.arm.models.franka import FR3


class SimulatedPerson:
    """Lifts the cube, or reaches for the goal, by twists alone.

    Args:
        session: rings; the person sees what they say.
        limits: of the arm.
        task: 'lift' or 'reach'.
        speed: what the device's full deflection means, m/s.
        rng: how the hand trembles.

    """

    def __init__(self, session, limits, task, speed, rng):
        self.session, self.limits, self.task, self.speed, self.rng = session, limits, task, speed, rng
        self.upright = FR3.chain.forward(np.array(FR3.home)).rotation
        self.closed, self.since, self.episode = False, 0.0, 0

    def decide(self, now):
        """(twist (6,) of -1 to 1, deadman, whether the gripper's button is pressed)."""
        tick = self.session.ticks.latest()
        if tick is None or not tick["episode"]:
            self.closed, self.episode = False, 0
            return np.zeros(6), False, False
        if tick["episode"] != self.episode:
            self.episode, self.since, self.closed = int(tick["episode"]), now, False
        if now - self.since < 0.3:
            return np.zeros(6), False, False
        pose = FR3.chain.forward(tick["q"], self.limits.tool)
        tool, goal, press = pose.position, tick["task"][:3], False
        if self.task == "lift":
            width = float(tick["width"])
            beside = float(np.linalg.norm(goal[:2] - tool[:2]))
            if self.closed:
                target = tool if width > 0.06 or width < 0.01 else np.array([tool[0], tool[1], 0.2])
            elif beside < 0.006 and np.linalg.norm(goal - tool) < 0.008:
                press = self.closed = True
                target = tool
            else:
                target = goal + np.array([0.0, 0.0, float(np.clip(2.5 * (beside - 0.006), 0.0, 0.1))])
        else:
            target = goal
        way = 4.0 * (target - tool) / self.speed
        way *= min(1.0, 1.0 / max(np.linalg.norm(way), 1e-9))
        turn = np.clip(2.0 * rotation_error(pose.rotation, self.upright), -0.5, 0.5)
        twist = np.concatenate([way, turn]) + 0.01 * self.rng.standard_normal(6)
        return np.clip(twist, -1.0, 1.0), True, press
