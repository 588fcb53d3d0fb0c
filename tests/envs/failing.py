"""Simulators that fail on request. A worker imports this file by its own name, ``failing``."""

import os
import signal

from flowpolicy.envs.toy import ToyConfig, ToyEnv, ToyRecorder


class FailingEnv(ToyEnv):
    """Raises for an action that starts with 7 and dies for one that starts with 8."""

    def step(self, action):
        if action[0] == 7:
            raise ValueError("the gears are stripped")
        if action[0] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class DyingRecorder(ToyRecorder):
    """Dies in the third episode."""

    def __init__(self):
        super().__init__(ToyConfig())

    def record(self, seed, index, level, keep_failures):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().record(seed, index, level, keep_failures)
