"""A hand on the twin's arm: a spring that pulls the tool along a path, in simulated time."""

import numpy as np

from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.session.accelerated import accelerated_session
from flowpolicy.real_robot.session.launch import Setup

SPRING, BRAKE, STRONGEST = 600.0, 40.0, 35.0  # N/m, N s/m, N


class GuidedSession:
    """A session in which a hand leads.

    Args:
        running: the session; IDLE.

    """

    def __init__(self, running, episode=1):
        self.running, self.scene = running, running.arm.scene
        self.hand = self.scene.model.body("fr3_hand").id
        self.tool = FR3.hand.length
        running.ask("home", State.IDLE, seconds=25.0)
        running.ask("guide", State.READY, seconds=5.0)
        running.session.command("begin", episode, [0.0] * 3)
        self.wait(0.3, paused=True)

    def pose(self):
        return FR3.chain.forward(self.scene.data.qpos[:7].copy(), self.tool)

    def pull(self, target):
        """One look of the hand: a force at the tool towards ``target`` (3,) m; None lets go."""
        applied = self.scene.data.xfrc_applied
        if target is None:
            applied[self.hand] = 0.0
            return 0.0
        pose, dq = self.pose(), self.scene.data.qvel[:7]
        force = SPRING * (target - pose.position) - BRAKE * (pose.levers.T @ dq)
        force *= min(1.0, STRONGEST / max(np.linalg.norm(force), 1e-9))
        # At the tool point, while MuJoCo takes forces at the body's centre of mass.
        arm = pose.position - self.scene.data.xipos[self.hand]
        applied[self.hand, :3], applied[self.hand, 3:] = force, np.cross(arm, force)
        return float(np.linalg.norm(force))

    def wait(self, seconds, target=None, paused=False):
        """``target`` is a function of the time since now, or None."""
        begin = self.running.clock.now()
        while (t := self.running.clock.now() - begin) < seconds:
            self.pull(None if target is None else target(t))
            self.running.session.type(b"", paused)
            self.running.clock.sleep(0.004)


def circle(centre, radius=0.08, period=6.0):
    """A path of the tool that begins at rest at ``centre``."""

    def at(t):
        angle = 2 * np.pi * t / period
        grown = radius * min(1.0, t / 1.5)
        return centre + grown * np.array([1.0 - np.cos(angle), np.sin(angle), -0.5 * np.sin(angle)])

    return at


def guided_session(setup=None):
    return accelerated_session(setup or Setup(driver="scene"), teacher="guide")
