"""Whatever the bridge calls raises once, in every state: it lives on, brakes within the limits and tells the words."""

import dataclasses

import numpy as np
import pytest

from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge import bridge
from flowpolicy.real_robot.bridge.states import STREAMING, State
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError, Clock, GripperState
from flowpolicy.real_robot.drivers.fake import FakeArm

from ..simulated import DT, HOME, Simulation, peaks, swing


class Hand:
    """A gripper that does nothing."""

    state = GripperState(0.0, 0.08, 0.08, grasped=False)

    def command(self, opening):
        """Nothing."""

    def supervise(self, now):
        return 0.0

    def close(self):
        """Nothing."""


class Panic(BaseException):
    """As of a binding to Rust: no Exception."""


def unnamed(what):
    """What a driver says of an exception that it cannot name."""
    return ArmFaultError("other", what)


ERRORS = (RuntimeError, Panic, unnamed)


class Once:
    """In place of a method: raises at its first call, and is gone."""

    def __init__(self, owner, name, error):
        self.owner, self.name, self.error, self.fired = owner, name, error, False
        self.original = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *arguments, **named):
        if self.fired:
            return self.original(*arguments, **named)
        self.fired = True
        raise self.error

    def end(self):
        setattr(self.owner, self.name, self.original)


def calls(sim):
    """Every call of the bridge to something that can raise: owner and name."""
    made, follower = sim.bridge, sim.bridge.supervisor.follower
    yield from ((sim.arm, name) for name in ("state", "fault", "in_control", "set_reference", "stop", "start_stream"))
    yield from ((made.gripper, name) for name in ("command", "supervise"))
    yield from ((made.generator, name) for name in ("follow", "offer"))
    yield from ((made.generator.scheduler, name) for name in ("sample", "push", "rows_left"))
    yield from ((follower.envelope, name) for name in ("guard", "clip_reference", "speed_factor", "chunk_fault"))
    yield from ((made.health, name) for name in ("tick", "arm", "hold_reason"))
    yield from ((sim.session.ticks, "write"), (sim.session.events, "write"))
    yield from ((sim.session.commands, "read"), (sim.session.chunks, "read"))
    yield from ((follower, "_plan"), (sim.clock, "now"), (bridge, "unpack_chunk"))


def enter(sim, state):
    """Bring an idle bridge into a state in motion, where the state allows any."""
    assert sim.state is State.IDLE, sim.events()
    sim.policy = None
    sim.t += 100.0  # three faults within a minute would lock
    sim.arm.q, sim.arm.dq = HOME + 0.1, np.zeros(7)
    sim.run(2 * DT)
    if state is State.HOMING:
        sim.command("home").run(0.2)
    elif state is State.READY:
        sim.command("start")
    elif state in (State.RUNNING, State.HOLD, State.STOPPING):
        sim.command("start")
        sim.policy = swing(middle=sim.ticks[-1]["q_cmd"], every=0.1)
        sim.run(0.4)
        if state is State.HOLD:
            sim.bridge._hold("a test", sim.t)
        elif state is State.STOPPING:
            sim.command("stop")
    assert sim.state is state, sim.events()


@pytest.fixture
def sim(tmp_path, monkeypatch):
    made = Simulation(tmp_path, monkeypatch, gripper=Hand())
    made.run(2 * DT)
    return made


def until_it_rests(sim, seconds):
    """Run until the impedance loop has ended; the positions commanded until then, and whether the last was at rest."""
    path, follower = [], sim.bridge.supervisor.follower
    for _ in range(round(seconds / DT)):
        if sim.state is State.IDLE:
            sim.session.command("start")
        streaming = sim.state in STREAMING
        path += [follower.motion.q] if streaming else []
        sim.run(DT)
        follower = sim.bridge.supervisor.follower
        if streaming and sim.state not in STREAMING:
            return np.array(path), follower.resting
    return np.array(path), True


@pytest.mark.parametrize("state", [State.IDLE, State.HOMING, State.READY, State.RUNNING, State.HOLD, State.STOPPING])
def test_whatever_raises_once_ends_in_rest_within_the_limits_and_a_fault_that_is_told(sim, state):
    fired = []
    for number in range(len(list(calls(sim)))):
        enter(sim, state)
        owner, name = list(calls(sim))[number]
        once = Once(owner, name, ERRORS[number % 3](f"{name} failed"))
        path, rested = until_it_rests(sim, 0.8)
        once.end()
        if once.fired:
            fired.append(name)
            assert sim.state is State.FAULT, (name, sim.events())
            assert rested, name
            assert any(f"{name} failed" in text for text in sim.events("state")), (name, sim.events())
            if len(path) > 3:
                velocity, acceleration, jerk = peaks(path)
                assert velocity <= 1.5 + 1e-9, name
                assert acceleration <= 4.0 + 1e-6, name
                assert jerk <= 80.0 + 1e-3, name
            sim.command("recover")
        elif sim.state in STREAMING:
            sim.command("stop").run(1.0)
        assert sim.state is State.IDLE, (name, sim.events())
    assert {"state", "fault", "in_control", "set_reference", "supervise", "tick", "write", "read", "now"} <= {*fired}
    if state is State.RUNNING:
        assert {"follow", "offer", "sample", "push", "guard", "clip_reference", "_plan", "unpack_chunk"} <= {*fired}


@pytest.mark.parametrize("error", ["cartesian_reflex", "user_stop"])
def test_what_raises_after_a_fault_is_told_and_leaves_it_to_the_operator(sim, error):
    sim.arm.inject(error)
    sim.run(2 * DT)
    state = sim.state
    assert state in (State.FAULT, State.LOCKED)
    fired = []
    for owner, name in calls(sim):
        once = Once(owner, name, Panic(f"{name} failed"))
        sim.run(1.1)  # one such error is told a second
        once.end()
        fired += [name] * once.fired
        assert sim.state is state
        assert not once.fired or any(f"{name} failed" in text for text in sim.events("error")), sim.events()
    assert {"state", "supervise", "tick", "write", "read", "now"} <= {*fired}
    sim.arm.release_user_stop()
    once = Once(sim.arm, "recover", RuntimeError("no recovery"))
    sim.command("recover")
    once.end()
    assert sim.state is State.LOCKED
    assert "no recovery" in sim.events("state")[-1]
    assert sim.command("recover").state is State.IDLE


def test_an_arm_that_takes_no_reference_any_more_is_left_to_itself_at_once(sim):
    enter(sim, State.RUNNING)

    def refuse(q, dq):
        raise RuntimeError("the binding is gone")

    sim.arm.set_reference = refuse
    sim.run(3 * DT)
    assert sim.state is State.FAULT
    assert not sim.arm.in_control()
    assert "not even a stop reaches the arm: RuntimeError: the binding is gone" in sim.events("state")[-1]


def test_a_user_stop_while_the_arm_is_being_braked_locks_at_once(sim):
    enter(sim, State.RUNNING)
    once = Once(sim.bridge.supervisor.follower, "_plan", RuntimeError("no plan"))
    sim.run(2 * DT)
    once.end()
    assert sim.state is State.STOPPING
    sim.arm.inject("user_stop")
    sim.run(DT)
    assert sim.state is State.LOCKED


def test_a_connection_that_raises_ends_the_bridge_with_its_words(tmp_path, monkeypatch):
    clock = Clock(lambda: 0.0)
    arm = FakeArm(FR3, clock)
    Once(arm, "connect", Panic("no such device"))
    sim = Simulation(tmp_path, monkeypatch, arm=arm)
    sim.run(2 * DT)
    assert sim.bridge.supervisor.finished
    assert "Panic: no such device" in sim.events("error")[0]


@pytest.mark.parametrize("column", ["q", "dq", "t_robot", "success_rate"])
def test_a_reading_that_is_not_a_number_is_a_fault(sim, column):
    enter(sim, State.RUNNING)
    read = sim.arm.state
    sim.arm.state = lambda: dataclasses.replace(read(), **{column: np.nan * getattr(read(), column)})
    path, rested = until_it_rests(sim, 0.8)
    assert sim.state is State.FAULT
    assert "not a number" in sim.events("state")[-1]
    assert rested
    assert peaks(path)[1] <= 4.0 + 1e-6
