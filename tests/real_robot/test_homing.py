"""Homing through the impedance loop: its limits, where it may begin, how it ends."""

import numpy as np
import pytest

from flowpolicy.real_robot.states import State

from .simulated import DT, HOME, LIMITS, Simulation, peaks


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
