"""The gripper worker: hysteresis, newest wins, and a call that hangs."""

import threading
import time

from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.gripper_worker import GripperWorker
from flowpolicy.real_robot.drivers.fake import FakeGripper


def wait(condition):
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_closes_until_something_is_held_and_opens_wide():
    driver = FakeGripper(FR3.hand, thing=0.04)
    worker = GripperWorker(lambda: driver, FR3.hand, 5.0, lambda _: None)
    worker.command(0.0)
    wait(lambda: worker.state.grasped)
    assert worker.state.width == 0.04
    calls = driver.calls
    for opening in (0.02, 0.04, 0.049, 0.031):  # between the thresholds nothing changes
        worker.command(opening)
    time.sleep(0.1)
    assert driver.calls == calls
    worker.command(0.08)
    wait(lambda: not worker.state.grasped)
    assert worker.state.width == 0.08
    worker.close()


def test_thin_air_is_not_held():
    worker = GripperWorker(lambda: FakeGripper(FR3.hand), FR3.hand, 5.0, lambda _: None)
    worker.command(0.0)
    wait(lambda: worker.state.width < 0.01)
    assert not worker.state.grasped
    worker.close()


def test_the_newest_wish_wins_while_a_call_is_under_way():
    driver = FakeGripper(FR3.hand)
    driver.delay = 0.2
    worker = GripperWorker(lambda: driver, FR3.hand, 5.0, lambda _: None)
    for opening in (0.0, 0.08, 0.0, 0.08, 0.0):
        worker.command(opening)
        time.sleep(0.01)
    wait(lambda: worker.state.width < 0.01)
    assert driver.calls <= 3
    worker.close()


def test_a_hanging_call_is_abandoned_with_its_connection():
    made, said = [], []

    class Hanging(FakeGripper):
        def move(self, width, speed):
            if len(made) == 1:
                threading.Event().wait(20.0)
            super().move(width, speed)

    def make():
        made.append(Hanging(FR3.hand))
        return made[-1]

    worker = GripperWorker(make, FR3.hand, 0.1, said.append)
    worker.command(0.0)
    wait(lambda: worker.supervise(time.monotonic()) > 0.1 or len(made) > 1)
    wait(lambda: worker.state.width < 0.01)
    assert len(made) == 2
    assert "abandoned" in said[0]
    worker.close()


def test_a_call_that_fails_is_told_and_the_next_change_of_mind_connects_anew():
    made, said = [], []

    class Failing(FakeGripper):
        def move(self, width, speed):
            if len(made) == 1:
                raise ValueError("a binding's own words")
            super().move(width, speed)

    def make():
        made.append(Failing(FR3.hand))
        return made[-1]

    worker = GripperWorker(make, FR3.hand, 5.0, said.append)
    worker.command(0.0)
    wait(lambda: said)
    assert "a binding's own words" in said[0]
    assert worker.supervise(time.monotonic()) == 0.0
    worker.command(0.08)
    worker.command(0.0)
    wait(lambda: worker.state.width < 0.01)
    assert len(made) == 2
    worker.close()
