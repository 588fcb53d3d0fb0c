"""What goes wrong with a device in a hand: the arm holds, the device is named, and nothing goes on by itself."""

import re
import struct

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.teaching.device_watch import DeviceLimits
from flowpolicy.real_robot.teaching.teach_loop import TeachConfig

from ..simulated import DT, peaks
from .taught_simulation import Taught


def unplug(sim):
    if sim.kind in ("spacemouse", "gamepad"):
        sim.fake.gone = True
    elif sim.kind == "leader":
        sim.fake.connected = False
    else:
        sim.terminal = False


def plug(sim):
    if sim.kind in ("spacemouse", "gamepad"):
        sim.fake.gone = False
    elif sim.kind == "leader":
        sim.fake.connected = True
    sim.terminal = True


def silence(sim):
    """Nothing is said any more, and the cable is in."""
    sim.send_hand = lambda: None


def not_a_number(sim):
    if sim.kind == "leader":
        sim.fake.say([np.nan] * 7)
    elif sim.kind == "spacemouse":
        sim.fake.waiting.append(struct.pack("<B6h", 1, 32767, 0, 0, 0, 0, -32768))
    else:
        sim.fake.event(3, 1, 10**6)


def reorder(sim):
    if sim.kind == "leader":
        sim.fake.say(sim.inverse(sim.goal), late=3)
    else:
        sim.fake.event(3, 1, -20000, late=0.1)


def clock_jump(sim):
    if sim.kind == "leader":
        sim.fake.offset += 3600.0
    else:
        sim.fake.offset += 3600.0
        sim.fake.event(3, 1, -20001)


def jump(sim):
    sim.goal = sim.goal + 0.4


def pause(sim):
    """The process of the device stands still for 2 s; then everything that was said meanwhile is there at once."""
    loop, sim.policy = sim.policy, None
    sim.hold(2.0)
    sim.policy = loop


FAULTS = [
    ("spacemouse", unplug, "unplugged"),
    ("spacemouse", silence, "asked for the same motion"),
    ("spacemouse", not_a_number, "makes no sense"),
    ("spacemouse", pause, "process has been silent|clock moved"),
    ("gamepad", unplug, "unplugged"),
    ("gamepad", silence, "asked for the same motion"),
    ("gamepad", not_a_number, "outside its range"),
    ("gamepad", reorder, "wrong order"),
    ("gamepad", clock_jump, "clock went ahead by 3600"),
    ("gamepad", pause, "process has been silent|clock moved"),
    ("leader", unplug, "unplugged|silent"),
    ("leader", silence, "silent for"),
    ("leader", not_a_number, "not numbers"),
    ("leader", reorder, "came after|wrong order"),
    ("leader", clock_jump, "clock went ahead by 3600"),
    ("leader", jump, "rad from the arm"),
    ("leader", pause, "process has been silent|clock moved"),
    ("keyboard", silence, "no key is pressed"),
    ("keyboard", pause, "process has been silent|clock moved|no key"),
    ("guide", unplug, "silent for"),
]


@pytest.mark.parametrize(("kind", "fault", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_arm_holds_the_device_is_named_and_nothing_goes_on_by_itself(tmp_path, monkeypatch, kind, fault, words):
    sim = Taught(tmp_path, monkeypatch, kind)
    if kind == "guide":
        sim.begin(guide=True).hold(0.3, held=False).hold(0.6)
    else:
        sim.engaged()
    assert sim.state is State.RUNNING, sim.events()
    at, speak = len(sim.ticks), sim.send_hand
    fault(sim)
    sim.hold(1.5)
    ticks = sim.ticks[at:]
    states = np.array([tick["state"] for tick in ticks])
    assert (states == State.HOLD).any(), sim.events()
    told = [text for text in sim.events("state") if "-> HOLD" in text and kind in text]
    assert re.search(words, told[-1]) or re.search(words, sim.loop.watch.trouble), (told, sim.loop.watch.trouble)
    # Braked within the envelope, and at rest.
    assert np.abs(ticks[-1]["dq_cmd"]).max() < 1e-6
    speed, acceleration, jerk = peaks(sim.column("q_cmd"))
    assert speed <= 1.5 and acceleration <= 4.0 + 1e-3 and jerk <= 80.0 * 1.02
    # The button is still held: that alone moves nothing.
    plug(sim)
    sim.send_hand = speak
    rest = sim.ticks[-1]["q_cmd"].copy()
    if kind not in ("keyboard", "guide"):  # where the key, or the terminal, is the button
        sim.hold(1.5)
        np.testing.assert_array_equal(sim.ticks[-1]["q_cmd"], rest)
        if kind == "leader":
            sim.goal = rest.copy()
        sim.engage_again()
        assert sim.state is State.RUNNING, sim.events()
    # The episode goes on: it was not lost.
    assert sim.ticks[-1]["episode"] == 1
    assert sim.ticks[-1]["rejected"] <= 2


def test_a_stuck_button_ends_in_a_hold(tmp_path, monkeypatch):
    sim = Taught(tmp_path, monkeypatch, watch=DeviceLimits(stuck_s=2.0))
    sim.begin().hold(0.3, held=False, twist=np.zeros(6)).hold(0.3, twist=np.zeros(6))
    assert sim.state is State.RUNNING
    sim.hold(2.0, twist=np.zeros(6))
    assert sim.state is State.HOLD
    assert "spacemouse: its deadman's button is held and nothing was said for 2 s: is it stuck?" in sim.events()[-1]


def test_a_button_that_is_pressed_from_the_beginning_moves_nothing(tmp_path, monkeypatch):
    sim = Taught(tmp_path, monkeypatch)
    sim.fake.hand(held=True)
    sim.begin().hold(1.0)
    assert sim.state is State.READY
    assert "is pressed already; release the" in sim.loop.watch.trouble
    assert sim.engage_again().state is State.RUNNING


def test_a_hold_of_the_bridge_itself_ends_only_with_the_button(tmp_path, monkeypatch):
    sim = Taught(tmp_path, monkeypatch).engaged()
    sim.arm.blocked[:] = True  # somebody stands in the way
    sim.hold(2.0, twist=[1, 1, 0, 0, 0, 0])
    assert sim.state is State.HOLD
    assert "has not followed" in "".join(sim.events("state"))
    sim.arm.blocked[:] = False
    sim.hold(1.0)
    assert sim.state is State.HOLD
    assert sim.engage_again().state is State.RUNNING


@pytest.mark.parametrize("kind", ["spacemouse", "gamepad", "leader"])
def test_whatever_a_device_says_the_envelope_holds(tmp_path, monkeypatch, kind):
    """The same with 10^5 messages: docs/records/teaching.json."""
    count, worst = 0, np.zeros(3)
    rng = np.random.default_rng(0)
    sim = Taught(tmp_path, monkeypatch, kind).begin()
    for _ in range(15):
        rude(sim, rng)
        count += 20
    path = sim.column("q_cmd")
    worst = np.maximum(worst, peaks(path))
    assert (worst <= [1.5 * 1.001, 4.0 * 1.001, 80.0 * 1.02]).all()
    assert (path >= sim.loop.limits.q_low - 1e-9).all() and (path <= sim.loop.limits.q_high + 1e-9).all()
    assert (sim.column("state") == State.RUNNING).any()


def rude(sim, rng, every=1, bad=0.17):
    """Twenty random messages, good ones and bad ones; 12 ms pass after each, or after several."""
    held = bool(rng.random() < 0.8)
    for place in range(20):
        what = int(rng.integers(2)) if rng.random() < bad else 2
        if sim.kind == "spacemouse":
            if what == 0:
                sim.fake.waiting.append(rng.bytes(int(rng.integers(1, 16))))
            elif what == 1:
                sim.fake.waiting.append(struct.pack("<B6h", 1, *rng.integers(-32768, 32767, 6)))
            else:
                sim.fake.hand(np.clip(rng.standard_normal(6), -1, 1), held=held, grip=bool(rng.integers(2)))
        elif sim.kind == "gamepad":
            if what == 0:
                sim.fake.event(int(rng.integers(5)), int(rng.integers(400)), int(rng.integers(-(10**6), 10**6)))
            elif what == 1:
                sim.fake.event(3, int(rng.integers(20)), int(rng.integers(-32768, 32767)), late=float(rng.normal()))
            else:
                sim.fake.hand(np.clip(rng.standard_normal(6), -1, 1), held=held, grip=bool(rng.integers(2)))
        else:
            if what == 0:
                sim.fake.say(rng.standard_normal(int(rng.integers(1, 9))) * 10.0 ** rng.integers(-3, 300), held)
            elif what == 1:
                sim.fake.say(sim.inverse(sim.goal), held, late=int(rng.integers(5)), ahead=float(rng.normal()))
            else:
                sim.goal = sim.ticks[-1]["q_cmd"] + 0.1 * rng.standard_normal(7)
                sim.fake.say(sim.inverse(sim.goal), held, grip=float(rng.normal()))
        if place % every == 0:
            sim.run(3 * DT)
    sim.fake.gone = bool(sim.kind != "leader" and rng.random() < 0.18 * bad)


def test_settings_out_of_range_are_refused():
    for wrong in ({"speed": 1.0}, {"turning": 0.0}, {"facing": 1e4}, {"speed": float("nan")}):
        with pytest.raises(ConfigError, match="expected"):
            TeachConfig(**wrong)
