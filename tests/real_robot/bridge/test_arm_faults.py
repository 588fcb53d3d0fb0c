"""Faults of the robot in simulated time: what each leads to, who may recover, and that nothing old is resumed."""

import numpy as np
import pytest

from flowpolicy.real_robot.bridge.states import State

from ..simulated import DT, Simulation


@pytest.fixture
def sim(tmp_path, monkeypatch):
    return Simulation(tmp_path, monkeypatch)


@pytest.mark.parametrize("error", ["cartesian_reflex", "joint_reflex"])
def test_a_reflex_is_a_fault_that_only_the_operator_recovers(sim, error):
    sim.running()
    hit = sim.t
    sim.arm.inject(error)
    sim.run(DT)
    assert sim.state is State.FAULT
    assert sim.t - hit < 0.02
    assert f"collision: {error}" in sim.events("state")[-1]
    sim.policy = None
    sim.run(12.0)
    assert sim.state is State.FAULT
    sim.command("recover")
    assert sim.state is State.IDLE
    sim.ready()
    np.testing.assert_allclose(sim.ticks[-1]["q_cmd"], sim.arm.q, atol=1e-6)


def test_a_communication_fault_recovers_alone_once_in_ten_seconds(sim):
    sim.running()
    sim.arm.inject("communication_constraints_violation")
    sim.run(4 * DT)
    assert sim.state is State.IDLE
    assert any("RECOVERING: alone" in text for text in sim.events("state"))
    sim.ready().run(DT)
    sim.arm.inject("communication_constraints_violation")
    sim.run(1.0)
    assert sim.state is State.FAULT


def test_a_pulled_cable_is_noticed_within_50_ms(sim):
    sim.running()
    sim.arm.frozen, pulled = True, sim.t
    sim.run(0.08)
    at = sim.column("t_mono")[np.nonzero(sim.column("state") == State.FAULT)[0][0]]
    assert 0.045 <= at - pulled <= 0.06
    assert "network" in sim.events("state")[-1]
    sim.command("recover")
    assert sim.state is State.IDLE


def test_the_user_stop_locks(sim):
    sim.running()
    sim.arm.inject("user_stop")
    sim.run(2 * DT)
    assert sim.state is State.LOCKED
    sim.policy = None
    sim.run(12.0)
    assert sim.state is State.LOCKED
    sim.command("recover")
    assert sim.state is State.LOCKED
    assert "still pressed" in sim.events("state")[-1]
    sim.arm.release_user_stop()
    sim.command("recover")
    assert sim.state is State.IDLE


def test_three_faults_in_a_minute_lock(sim):
    sim.run(2 * DT)
    for number in (1, 2, 3):
        sim.command("start").arm.inject("cartesian_reflex")
        sim.run(2 * DT)
        assert sim.state is (State.LOCKED if number == 3 else State.FAULT)
        sim.command("recover")


def test_no_chunk_survives_a_fault(sim):
    sim.running(rows=60)
    sim.arm.inject("cartesian_reflex")
    sim.policy = None
    sim.run(DT).command("recover", "start").run(0.5)
    assert sim.state is State.READY
    assert sim.bridge.generator.scheduler.newest is None
