"""A SpaceMouse by its reports, and the bridge under the hand of a person."""

import struct

import numpy as np
import pytest

from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.teaching.spacemouse import SpaceMouse
from flowpolicy.real_robot.teaching.teaching_device import DeviceError

from ..simulated import DT
from .fake_devices import FakeHid
from .taught_simulation import Taught


def connected():
    hid = FakeHid()
    mouse = SpaceMouse(lambda: hid)
    mouse.open(0.0)
    return hid, mouse


@pytest.mark.parametrize("both", [True, False])
def test_the_cap_is_read_in_the_axes_of_a_person_behind_the_base(both):
    hid, mouse = connected()
    for axis in range(6):
        for sign in (-1, 1):
            wanted = np.zeros(6)
            wanted[axis] = 0.5 * sign
            hid.hand(wanted, both=both)
            np.testing.assert_allclose(mouse.read(1.0).twist, wanted, atol=2e-3)
    # Right, towards the person, down; and the same for turns, by the right hand.
    for raw, base in ((0, (0, -1, 0)), (1, (-1, 0, 0)), (2, (0, 0, -1))):
        counts = [0] * 6
        counts[raw] = counts[3 + raw] = 350
        hid.waiting.append(struct.pack("<B6h", 1, *counts))
        np.testing.assert_allclose(mouse.read(1.0).twist, np.tile(base, 2))
    hid.hand()
    hid.waiting.append(struct.pack("<B6h", 1, *[20] * 6))
    assert not mouse.read(1.0).twist.any()


def test_buttons_are_the_deadmans_and_the_grippers():
    hid, mouse = connected()
    seen = []
    for held, grip in ((1, 0), (1, 1), (1, 1), (1, 0), (0, 1), (0, 0)):
        hid.hand(held=held, grip=grip)
        reading = mouse.read(1.0)
        seen.append((reading.held, reading.toggles))
    assert seen == [(True, 0), (True, 1), (True, 1), (True, 1), (False, 2), (False, 2)]


def test_nonsense_is_told_and_a_device_that_is_gone_raises():
    hid, mouse = connected()
    hid.waiting.extend([b"\x17\x64", b"\x01\x00", b"", struct.pack("<B3h", 1, 30000, 0, 0)])
    assert "no sense" not in mouse.read(1.0).strange  # up to the empty report
    assert "no sense: (30000, 0, 0)" in mouse.read(1.0).strange
    hid.gone = True
    with pytest.raises(DeviceError, match="unplugged: read error"):
        mouse.read(1.0)
    assert hid.closed
    with pytest.raises(DeviceError, match="not connected"):
        mouse.read(1.0)


def hold(sim, seconds, twist, held=False):
    for _ in range(round(seconds / (3 * DT))):
        sim.fake.hand(twist, held=held)
        sim.run(3 * DT)


def test_the_tool_goes_where_the_cap_is_pushed_and_holds_when_the_button_is_released(tmp_path, monkeypatch):
    sim = Taught(tmp_path, monkeypatch)
    sim.begin()
    hold(sim, 0.2, [0] * 6)
    start = sim.tool
    hold(sim, 0.1, [0, 1, 0, 0, 0, 0])
    assert sim.state is State.READY  # nothing moves without the button
    hold(sim, 1.0, [0, 1, 0, 0, 0, 0], held=True)
    assert sim.state is State.RUNNING
    way = sim.tool - start
    assert 0.10 < way[1] < 0.15
    assert np.abs(way[[0, 2]]).max() < 4e-3
    released = len(sim.ticks)
    hold(sim, 0.3, [0, 1, 0, 0, 0, 0])
    since = sim.ticks[released:]
    holding = next(i for i, tick in enumerate(since) if tick["state"] == State.HOLD)
    assert holding * DT <= 0.04
    resting = next(i for i, tick in enumerate(since) if np.abs(tick["dq_cmd"]).max() < 1e-6)
    assert resting * DT <= 0.2
    assert sim.events("state")[-1] == "RUNNING -> HOLD: spacemouse: the deadman's button is released"
    # However long the pause is, the person goes on.
    hold(sim, 5.0, [0] * 6)
    assert sim.state is State.HOLD
    before = sim.tool
    hold(sim, 0.5, [0, -1, 0, 0, 0, 0], held=True)
    assert sim.state is State.RUNNING
    assert sim.tool[1] < before[1] - 0.03
    assert sim.ticks[-1]["rejected"] == 0
