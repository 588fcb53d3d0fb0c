"""The bridge on a fake arm in simulated time: the fault table, the watchdogs, and what reaches the arm."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.ring_records import chunk_type
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.fake import FakeArm

from ..simulated import DT, HOME, LIMITS, Simulation, peaks


@pytest.fixture
def sim(tmp_path, monkeypatch):
    return Simulation(tmp_path, monkeypatch)


def test_the_bridge_imports_no_torch():
    code = (
        "import sys, flowpolicy.real_robot.bridge.bridge, flowpolicy.real_robot.session.bridge_process\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.quick("robot")
def test_a_healthy_policy_is_followed_without_a_stale_tick(sim):
    sim.running(latency=0.08, disagree=0.01).run(4.0)
    tick = sim.ticks[-1]
    assert (tick["starved"], tick["rejected"], tick["clipped"], tick["refused"]) == (0, 0, 0, 0)
    assert np.abs(sim.column("q_cmd") - sim.column("q_ref"))[300:].max() < 0.03
    assert np.abs(sim.column("q") - sim.column("q_cmd")).max() < 0.1
    assert np.ptp(sim.column("q")[:, 0]) > 0.2
    velocity, acceleration, jerk = peaks(sim.column("q_cmd")[10:])
    assert velocity <= 1.5
    assert acceleration <= 4.0 + 1e-6
    assert jerk <= 80.0 + 1e-3


def test_an_arm_outside_the_workspace_is_not_started(sim):
    sim.arm.q = HOME + np.array([1.4, 0, 0, 0, 0, 0, 0])
    sim.run(2 * DT).command("start")
    assert sim.state is State.IDLE
    assert "outside the workspace" in sim.events("refused")[0]


def alive(sim):
    """A policy process that is there and does not decide."""
    sim.session.chunks.write(np.zeros((), chunk_type(FR3.joints)))
    return 0.1


def stop_time(sim, since):
    """Seconds until the measured arm was slower than 0.01 rad/s for good."""
    moving = np.nonzero(np.abs(sim.column("dq")).max(1) > 0.01)[0]
    return sim.column("t_mono")[moving[-1]] - since


def test_a_stalled_policy_brakes_holds_and_resumes(sim):
    sim.running(amplitude=0.15)
    policy, sim.policy, stalled = sim.policy, alive, sim.t
    sim.run(1.5)
    assert sim.state is State.HOLD
    ended = sim.column("t_mono")[np.nonzero(sim.column("state") == State.HOLD)[0][0]]
    starved = sim.column("t_mono")[np.nonzero(sim.column("starved") > 0)[0][0]]
    assert 0.2 <= ended - starved <= 0.25
    assert stop_time(sim, starved) < 0.5
    assert sim.ticks[-1]["starved"] > 40
    _, acceleration, jerk = peaks(sim.column("q_cmd")[10:])
    assert acceleration <= 4.0 + 1e-6
    assert jerk <= 80.0 + 1e-3
    sim.policy = policy
    # The HOLD lasted less than a second: it ends by itself.
    assert sim.t - ended < 1.0
    sim.run(0.5)
    assert sim.state is State.RUNNING
    assert stalled < sim.t


@pytest.mark.quick("robot")
def test_a_dead_policy_ends_in_idle_with_the_arm_at_rest(sim):
    sim.running()
    sim.policy = None
    sim.run(3.5)
    assert sim.state is State.IDLE
    assert not sim.arm.in_control()
    assert np.abs(sim.ticks[-1]["dq"]).max() < 0.01
    assert any("no chunk for 2 s" in text for text in sim.events("state"))


def test_a_long_hold_needs_the_operator(sim):
    sim.running()
    policy, sim.policy = sim.policy, alive
    sim.run(2.4)
    assert sim.state is State.HOLD
    sim.policy = policy
    sim.run(0.3)
    assert sim.state is State.HOLD
    sim.command("rearm").run(0.3)
    assert sim.state is State.RUNNING


def test_a_silent_policy_process_holds(sim):
    sim.running(rows=32)
    sim.send(np.tile(sim.ticks[-1]["q_cmd"], (40, 1)))
    sim.policy = None
    sim.run(0.6)
    assert sim.state is State.HOLD
    assert "silent for 50" in sim.events("state")[-1]


def test_a_sign_of_life_without_rows_is_no_chunk(sim):
    sim.running(rows=32)
    sim.send(np.tile(sim.ticks[-1]["q_cmd"], (40, 1)))
    sim.policy = alive
    sim.run(1.0)
    assert sim.state is State.RUNNING


def bad_chunks(q):
    nan, jump, outside = (np.tile(q, (16, 1)) for _ in range(3))
    nan[5, 3] = np.nan
    jump[:, 0] += 0.5
    outside[:, 5] = LIMITS.arm.limits.q_max[5]
    return {"not finite": nan, "jump": jump, "outside": outside}


@pytest.mark.parametrize("kind", ["not finite", "jump", "outside"])
def test_bad_chunks_are_rejected_and_three_of_them_hold(sim, kind):
    sim.running(rows=32)
    sim.policy = None
    for number in (1, 2, 3):
        before = sim.bridge.generator.scheduler.newest
        sim.send(bad_chunks(sim.ticks[-1]["q_cmd"])[kind])
        sim.run(2 * DT)
        assert sim.ticks[-1]["rejected"] == number
        assert sim.state is (State.HOLD if number == 3 else State.RUNNING)
        assert number == 3 or sim.bridge.generator.scheduler.newest is before
    assert kind in sim.events("rejected")[0]


def test_late_and_stale_chunks_move_nothing(sim):
    sim.ready()
    sim.send(np.tile(HOME + 0.1, (4, 1)), t_obs=sim.t - 0.25, dt=0.05)
    sim.run(0.1)
    sim.send(np.tile(HOME + 0.1, (16, 1)), t_obs=sim.t - 0.4)
    sim.run(0.1)
    sim.send(np.tile(HOME + 0.1, (16, 1)), t_obs=sim.t + 5.0)
    sim.run(0.1)
    assert sim.state is State.READY
    assert sim.ticks[-1]["rejected"] == 3
    assert "late" in sim.events("rejected")[0]
    assert "400 ms old" in sim.events("rejected")[1]
    np.testing.assert_allclose(sim.arm.q, HOME, atol=1e-9)


def test_lost_commands_slow_the_arm_then_hold_it(sim):
    sim.running()
    sim.arm.success_rate = 0.93
    sim.run(2.0)
    assert sim.ticks[-1]["speed"] == 0.5
    assert sim.state is State.RUNNING
    assert any("commands arrive in time" in text for text in sim.events("warning"))
    sim.arm.success_rate = 0.5
    sim.run(1.0)
    assert sim.state is State.HOLD


def test_three_late_ticks_hold(sim):
    sim.running()
    sim.run(2 * DT, late=0.03)
    assert sim.state is State.RUNNING
    sim.run(DT, late=0.03)
    assert sim.state is State.HOLD
    assert sim.ticks[-1]["late"] == 3


def test_an_arm_that_is_held_fast_is_not_pulled_at(sim):
    sim.running(amplitude=0.6)
    sim.arm.blocked[:] = True
    sim.run(1.5)
    assert sim.state is State.HOLD
    assert "has not followed" in " ".join(sim.events("state"))
    # The leash, and what it takes to brake from full speed.
    assert np.abs(sim.column("q_cmd") - sim.column("q")).max() < LIMITS.leash + 0.15


def test_leaving_the_workspace_three_times_in_a_second_holds(tmp_path, monkeypatch):
    limits = dataclasses.replace(LIMITS, box_low=(0.25, -0.45, 0.47))
    sim = Simulation(tmp_path, monkeypatch, limits=limits)

    def dip(sim):
        q = np.tile(HOME, (16, 1))
        q[:, 1] += 0.1 * np.sin(2 * np.pi * 4 * (sim.t + 0.05 * (1 + np.arange(16))))
        sim.send(q)
        return 0.1

    sim.ready()
    sim.policy = dip
    sim.run(1.5)
    assert sim.state is State.HOLD
    assert "the workspace was left 3 times" in " ".join(sim.events("state"))
    heights = FR3.chain.forward(sim.column("q_cmd"), LIMITS.tool).position[:, 2]
    assert heights.min() > 0.47


def test_shadow_computes_everything_and_moves_nothing(tmp_path, monkeypatch):
    sim = Simulation(tmp_path, monkeypatch, shadow=True)
    sim.running(amplitude=0.3).run(1.0)
    np.testing.assert_allclose(sim.column("q") - HOME, 0.0, atol=1e-9)
    assert sim.column("disagreement").max() > 0.1
    assert sim.state is State.RUNNING


def test_an_unreachable_arm_ends_the_bridge_with_a_reason(tmp_path, monkeypatch):
    sim = Simulation(tmp_path, monkeypatch, arm=None)
    arm = FakeArm(FR3, sim.clock)
    arm.unreachable = True
    sim = Simulation(tmp_path, monkeypatch, arm=arm)
    sim.arm.clock = sim.clock
    sim.run(2 * DT)
    assert sim.bridge.supervisor.finished
    assert "did not answer within 5 s" in sim.events("error")[0]


def test_quit_brings_the_arm_to_rest_first(sim):
    sim.running()
    sim.command("quit")
    assert sim.state is State.STOPPING
    assert not sim.bridge.supervisor.finished
    sim.run(0.6)
    assert sim.bridge.supervisor.finished
    assert np.abs(sim.ticks[-1]["dq_cmd"]).max() < 1e-6


def test_adversarial_chunks_leave_no_limit(tmp_path, monkeypatch):
    sim = Simulation(tmp_path, monkeypatch)
    rng = np.random.default_rng(3)

    def attack(sim):
        q = np.tile(sim.bridge.generator.follower.motion.q, (8, 1))
        q += rng.choice([0.02, 0.1, 0.25]) * rng.standard_normal((8, 7)).cumsum(0)
        if rng.random() < 0.05:
            q[rng.integers(8), rng.integers(7)] = rng.choice([np.nan, np.inf, 9.0])
        sim.send(q, dt=rng.uniform(0.01, 0.1))
        return rng.uniform(0.0, 0.1)

    sim.policy = attack
    sim.ready()
    path = []
    for _ in range(40):
        sim.run(0.25)
        if sim.state is State.HOLD:
            sim.command("rearm")
        elif sim.state is State.IDLE:
            sim.command("home").run(3.0).command("start")
            path.append(len(sim.ticks))
    commanded = sim.column("q_cmd")
    assert sim.ticks[-1]["chunks"] > 30
    assert sim.ticks[-1]["rejected"] > 30
    for part in np.split(commanded, path):
        if len(part) > 10:
            velocity, acceleration, jerk = peaks(part[6:])
            assert velocity <= 1.5 + 1e-6
            assert acceleration <= 4.0 + 1e-5
            assert jerk <= 80.0 + 1e-2
    assert (commanded[6:] >= LIMITS.q_low - 1e-9).all()
    assert (commanded[6:] <= LIMITS.q_high + 1e-9).all()
