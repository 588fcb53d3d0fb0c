"""Homing through the impedance loop: its limits, where it may begin, how it ends."""

import numpy as np
import pytest
import ruckig

from flowpolicy.real_robot.arm.braking import Motion
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import homing_limits
from flowpolicy.real_robot.arm.follower import Follower
from flowpolicy.real_robot.bridge.states import State

from ..simulated import DT, HOME, LIMITS, Simulation, peaks


@pytest.fixture
def sim(tmp_path, monkeypatch):
    return Simulation(tmp_path, monkeypatch)


def test_home_then_start_then_stop(sim):
    sim.arm.q = HOME + 0.2
    sim.run(2 * DT).command("home")
    assert sim.state is State.HOMING
    sim.run(3.0)
    assert sim.state is State.IDLE
    np.testing.assert_allclose(sim.arm.q, HOME, atol=0.005)
    way = np.array([tick["q_cmd"] for tick in sim.ticks if tick["state"] == State.HOMING])
    velocity, acceleration, jerk = peaks(way)
    assert 0.3 < velocity <= 0.3 * 2.62 + 1e-9
    assert acceleration <= 4.0 + 1e-6
    assert jerk <= 80.0 + 1e-3
    sim.command("start")
    assert sim.state is State.READY
    sim.command("stop").run(0.1)
    assert sim.state is State.IDLE
    assert not sim.arm.in_control()
    assert [text.split(":")[0] for text in sim.events("state")] == [
        "DISCONNECTED -> IDLE",
        "IDLE -> HOMING",
        "HOMING -> IDLE",
        "IDLE -> READY",
        "READY -> STOPPING",
        "STOPPING -> IDLE",
    ]


def test_homing_begins_outside_the_workspace_brakes_when_told_and_gives_up(sim):
    sim.arm.q = np.array([0.0, 0.75, 0.0, -1.95, 0.0, 2.7, 0.785])  # the tool below the workspace
    sim.run(2 * DT).command("start")
    assert "outside the workspace" in sim.events("refused")[-1]
    sim.command("home").run(0.3).command("stop")
    assert sim.state is State.STOPPING
    sim.run(0.5)
    assert sim.state is State.IDLE
    assert np.abs(sim.arm.q - HOME).max() > 0.1
    sim.command("home")
    sim.arm.blocked[3] = True
    sim.run(20.1)
    assert sim.state is State.FAULT
    way = np.array([tick["q_cmd"] - tick["q"] for tick in sim.ticks[-4000:] if tick["state"] == State.HOMING])
    assert 0.1 < np.abs(way).max() < LIMITS.leash + 0.15  # and what it takes to brake
    assert "rad from home after 20 s" in sim.events("state")[-1]


ON_THE_EDGE = [
    (0.11518929166970569, -0.5625632314988149, 0.3589967494336996),
    (-0.6809520360686026, -0.4872357991216296, 0.0),
    (-0.11853393955023722, 0.5859146864780366, -1.646799584225251),
    (-2.237315195553281, -0.5857342437349374, 2.467863285619117),
    (0.006297253690114341, -0.02220397508515973, 0.0),
    (1.6513935179124002, -0.3476895439601152, 0.0),
    (0.7086949552582595, 0.32729114811747134, 0.0),
]
"""Position, velocity and acceleration of each joint on one way home in sixty: within every limit, and Ruckig raises."""


class Deaf:
    """Ruckig, and the errors that it raised while the joints were planned together; or one that finds no way at all."""

    def __init__(self, planner, alone=True):
        self.planner, self.alone, self.errors = planner, alone, 0

    def update(self, given, output):
        try:
            if not self.alone:
                raise ruckig.RuckigError("no way")
            return self.planner.update(given, output)
        except ruckig.RuckigError:
            self.errors += 1
            raise


@pytest.fixture
def homing():
    return Follower(Envelope(homing_limits(LIMITS, 0.3), DT))


def on_the_way(follower, ticks):
    """Positions commanded on the way home, for at most ``ticks``."""
    path = []
    while len(path) < ticks and not (path and follower.resting):
        follower.step(HOME, np.zeros(7))
        path.append(follower.motion.q)
    return np.array(path)


def test_where_ruckig_misses_the_common_time_of_arrival_the_arm_still_comes_home_within_its_limits(homing):
    homing.motion = Motion(*np.array(ON_THE_EDGE).T)
    homing._planner = planner = Deaf(homing._planner)
    path = on_the_way(homing, 500)
    assert planner.errors > 0
    np.testing.assert_allclose(homing.motion.q, HOME, atol=1e-3)
    velocity, acceleration, jerk = peaks(path)
    assert velocity <= 0.3 * 2.62 + 1e-9
    assert acceleration <= 4.0 + 1e-6
    assert jerk <= 80.0 + 1e-3


def test_without_any_way_the_arm_brakes_within_its_limits_and_goes_on_when_there_is_one_again(homing):
    homing.seed(HOME + 0.3)
    moving = on_the_way(homing, 100)
    planner, homing._planner = homing._planner, Deaf(homing._planner, alone=False)
    braked = on_the_way(homing, 300)
    assert homing.resting
    homing._planner = planner
    homed = on_the_way(homing, 500)
    np.testing.assert_allclose(homing.motion.q, HOME, atol=1e-3)
    velocity, acceleration, jerk = peaks(np.concatenate([moving, braked, homed]))
    assert velocity <= 0.3 * 2.62 + 1e-9
    assert acceleration <= 4.0 + 1e-6
    assert jerk <= 80.0 + 1e-3
