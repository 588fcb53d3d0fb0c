"""The state machine of the bridge. Every transition has a reason and is kept.

docs/methods/franka-control.md#states draws it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from flowpolicy.real_robot.drivers.driver_protocols import FaultKind, RobotError


class State(enum.IntEnum):
    """What the bridge is doing."""

    DISCONNECTED = 0
    IDLE = 1
    """The robot holds by itself."""
    HOMING = 2
    """On the way to the home pose, by the same impedance loop as everything else."""
    READY = 3
    """The impedance loop is on, the reference is where the arm is."""
    RUNNING = 4
    """Following chunks."""
    HOLD = 5
    """Braked to a standstill, the impedance loop stays on."""
    STOPPING = 6
    FAULT = 7
    """The robot stopped by itself, or is not heard."""
    RECOVERING = 8
    LOCKED = 9
    """Only the operator can go on: a human pressed the stop, or faults repeat."""


_NEXT: dict[State, tuple[State, ...]] = {
    State.DISCONNECTED: (State.IDLE,),
    State.IDLE: (State.HOMING, State.READY),
    State.HOMING: (State.IDLE, State.STOPPING),
    State.READY: (State.RUNNING, State.STOPPING),
    State.RUNNING: (State.HOLD, State.STOPPING),
    State.HOLD: (State.RUNNING, State.STOPPING),
    State.STOPPING: (State.IDLE,),
    State.FAULT: (State.RECOVERING, State.LOCKED),
    State.RECOVERING: (State.IDLE, State.LOCKED),
    State.LOCKED: (State.RECOVERING,),
}
"""Allowed transitions; from every state but LOCKED also to FAULT."""

STREAMING = (State.HOMING, State.READY, State.RUNNING, State.HOLD, State.STOPPING)
"""States in which the impedance loop runs."""
_FAULTS, _FAULT_WINDOW, _RECOVERY_PAUSE = 3, 60.0, 10.0


class StateChange(NamedTuple):
    """One change of state."""

    t: float
    """s."""
    before: State
    after: State
    reason: str


class StateMachine:
    """Current state, and how it came about.

    Args:
        log: is told of every transition.

    """

    def __init__(self, log: Callable[[StateChange], None]) -> None:
        self.state, self.since = State.DISCONNECTED, 0.0
        self.fault_kind: FaultKind | None = None
        self._log = log
        self._faults: deque[float] = deque(maxlen=_FAULTS)
        self._recovered = -_RECOVERY_PAUSE

    def go(self, state: State, reason: str, now: float) -> None:
        """Change to ``state`` at ``now`` s.

        Raises:
            RobotError: the transition is not allowed.

        """
        if state is self.state:
            return
        if state not in _NEXT[self.state] and not (state is State.FAULT and self.state is not State.LOCKED):
            names = ", ".join(other.name for other in _NEXT[self.state])
            raise RobotError(f"{self.state.name} cannot become {state.name} ({reason})", expected=names)
        before, self.state, self.since = self.state, state, now
        self._log(StateChange(now, before, state, reason))

    def fault(self, kind: FaultKind, what: str, now: float) -> None:
        """Enter FAULT; LOCKED after a user stop or the third fault within a minute."""
        if self.state in (State.FAULT, State.LOCKED):
            return
        self.fault_kind = kind
        self.go(State.FAULT, f"{kind}: {what}", now)
        self._faults.append(now)
        if kind == "user_stop":
            self.go(State.LOCKED, "the user stop was pressed", now)
        elif len(self._faults) == _FAULTS and now - self._faults[0] <= _FAULT_WINDOW:
            self.go(State.LOCKED, f"{_FAULTS} faults within {_FAULT_WINDOW:g} s", now)

    def may_recover_alone(self, now: float, standstill: bool) -> bool:
        """Whether the bridge may recover without an operator: communication only, at rest, once in ten seconds."""
        pause = now - self._recovered >= _RECOVERY_PAUSE
        return self.state is State.FAULT and self.fault_kind == "communication" and standstill and pause

    def recovering(self, reason: str, now: float) -> None:
        """Enter RECOVERING. What follows is a new start: nothing old is resumed."""
        self._recovered = now
        self.go(State.RECOVERING, reason, now)
