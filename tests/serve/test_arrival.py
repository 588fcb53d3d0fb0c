"""When a request arrived, by clocks of the tests' own."""

import socket

import pytest

from flowpolicy.serve.arrival import PollClock, StampDelay


def test_a_message_that_took_longer_than_the_quickest_waited_so_long():
    delay = StampDelay()
    shift = 1e6  # the client's clock began at another time
    assert delay.of(10.003, 10.0 - shift) == 0.0
    assert delay.of(11.013, 11.0 - shift) == pytest.approx(0.010)
    assert delay.of(12.001, 12.0 - shift) == 0.0, "a quicker one"
    assert delay.of(13.021, 13.0 - shift) == pytest.approx(0.020)


def test_clocks_that_drift_apart_do_not_become_a_delay():
    delay, fast = StampDelay(), 1 + 1e-4
    assert max(delay.of(second * fast, second) for second in range(1000)) < 25 * 1e-4


def test_a_clock_that_is_set_is_no_delay():
    delay = StampDelay()
    assert delay.of(10.0, 10.0) == 0.0
    assert delay.of(3610.0, 11.0) == 0.0
    assert delay.of(3611.5, 12.0) == pytest.approx(0.5)


def test_what_a_look_finds_came_after_the_look_before_or_has_just_come():
    now = [0.0]
    ours, theirs = socket.socketpair()
    with PollClock(lambda: now[0]) as polls, ours, theirs:
        polls.register(ours, 1)
        now[0] = 1.0
        polls.select(0)
        now[0] = 1.5  # the loop was busy for half a second, in which something came
        theirs.send(b"x")
        assert len(polls.select(0)) == 1
        assert (polls.looked, polls.since) == (1.5, 1.0)
        ours.recv(1)
        now[0] = 3.0
        polls.select(0.001)
        assert (polls.looked, polls.since) == (3.0, 3.0)
