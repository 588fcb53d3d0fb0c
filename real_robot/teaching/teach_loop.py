"""From what a device says to chunks, as a policy's process writes them: the same bridge, the same envelope.

A chunk says where the joints would go if the person went on like that for a sixth of a second, and then comes to rest
by itself: whatever happens to this process, nothing moves on for long. While the arm may not follow, every look says
so to the bridge, which brakes at once and stands still until a chunk comes again.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from flowpolicy.core.errors import ConfigError, MissingExtraError
from flowpolicy.real_robot.arm.differential_ik import DifferentialIk
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.bridge.ring_records import DEVICE, SessionRings, pack_chunk
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk
from flowpolicy.real_robot.teaching.device_watch import DeviceLimits, DeviceWatch
from flowpolicy.real_robot.teaching.teaching_device import Array, DeviceError, DeviceReading, TeachingDevice

EVERY = 0.02
"""Seconds between two looks at the device."""
ROW, ROWS = 0.02, 16
"""Of the chunks: s between rows, and rows."""
_STEADY = 0.16
"""A chunk goes on as it is for so long, s, then slows down to rest until its end."""
_RESUMED = 0.2
"""The bridge has so long to leave HOLD after the first chunk, s."""
_AGAIN = 0.5
"""Seconds between two attempts to find a device that is gone."""

Frame = Literal["base", "tool"]


@dataclasses.dataclass(frozen=True)
class TeachConfig:
    """How a device's motions become the arm's."""

    speed: float = 0.15
    """Of the tool at full deflection, m/s."""
    turning: float = 0.6
    """The same for turns, rad/s."""
    frame: Frame = "base"
    """Whose axes the device's are: the base's or the tool's."""
    facing: float = 0.0
    """Where the person stands: 0 behind the base and looking along x, 180 opposite, 90 on its right, degrees."""
    smooth: float = 0.06
    """Time constant of the velocities, s."""
    lead: float = 0.12
    """Largest distance of a joint's goal from where it is commanded, rad: an arm that cannot follow is waited for."""

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("speed", self.speed, 0.005, 0.375),
            ("turning", self.turning, 0.02, 0.75),
            ("facing", self.facing, -360.0, 360.0),
        ):
            if not low <= value <= high:
                raise ConfigError(f"--{flag} {value:g}", expected=f"{low:g} to {high:g}")


class TeachLoop:
    """Looks at a device and writes chunks.

    Args:
        device: in the person's hand; not opened yet.
        session: rings.
        limits: of the arm.
        config: how its motions become the arm's.
        watch: when it is not trusted.

    """

    def __init__(
        self,
        device: TeachingDevice,
        session: SessionRings,
        limits: EnvelopeLimits,
        config: TeachConfig,
        watch: DeviceLimits | None = None,
    ) -> None:
        self.device, self.session, self.limits, self.config = device, session, limits, config
        self.watch = DeviceWatch(device, watch or DeviceLimits())
        self._motion = DifferentialIk(limits)
        turn = math.radians(config.facing)
        c, s = math.cos(turn), math.sin(turn)
        self._facing = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        self._open, self._try_at = False, -math.inf
        self._seq = 0
        self._q: Array | None = None  # where the person has led the goal to; None while the arm does not follow
        self._dq = np.zeros(limits.arm.joints)
        self._last = self._began = -math.inf
        self._closed, self._toggles, self._paused = False, 0, False
        self._record = np.zeros((), DEVICE)

    def step(self, now: float) -> float:
        """Look at the device and the arm at ``now`` s; returns when to look again, s."""
        tick = self.session.ticks.latest()
        reading = self._read(now)
        at = tick["q_cmd"].copy() if tick is not None else None
        follows = reading is not None and self.watch.look(reading, now, at)
        if reading is not None and reading.toggles != self._toggles:
            self._closed ^= bool((reading.toggles - self._toggles) & 1) and follows
            self._toggles = reading.toggles
        self._act(tick, reading, now, follows)
        self._keep(now, reading)
        return now + EVERY

    def close(self) -> None:
        """Let go of the device."""
        self.device.close()

    def _read(self, now: float) -> DeviceReading | None:
        """What the device says; None, and no trust, while there is none."""
        try:
            if not self._open:
                if now < self._try_at:
                    return None
                self.device.open(now)
                self._open, self._toggles = True, 0
            reading = self.device.read(now)
            typed = self.session.typed.latest()
            self._paused = typed is not None and bool(typed["paused"])
            return dataclasses.replace(reading, held=False) if self._paused else reading
        except DeviceError as error:
            self._open, self._try_at = False, now + _AGAIN
            self.watch.distrust(error.what)
        except MissingExtraError:  # no waiting brings a package
            raise
        except Exception as error:  # whatever a binding raises about its device ends the trust, and not the session
            self._open, self._try_at = False, now + _AGAIN
            self.watch.distrust(f"{type(error).__name__}: {error}")
            self.device.close()
        return None

    def _act(self, tick: Records | None, reading: DeviceReading | None, now: float, follows: bool) -> None:
        state = State(int(tick["state"])) if tick is not None else State.DISCONNECTED
        active = state in (State.READY, State.RUNNING, State.HOLD) and tick is not None and int(tick["episode"]) > 0
        if tick is None or not active:
            self._q, self._closed = None, False
            self.session.alive()
            return
        if follows and state is State.HOLD and self._q is not None and now - self._began > _RESUMED:
            # The bridge holds for a reason of its own: that too ends only when the button is pressed anew.
            self.watch.distrust("the arm holds")
            follows = False
        if not follows or reading is None:
            self._q = None
            self.session.alive(self.watch.trouble or self._resting())
            return
        if state is State.HOLD and np.abs(tick["dq_cmd"]).max() > 1e-3:
            self.session.alive(f"{self.device.name}: the arm is coming to rest")  # where it will, nobody knows yet
            return
        self._follow(tick, reading, now)

    def _follow(self, tick: Records, reading: DeviceReading, now: float) -> None:
        began = self._q is None
        if self._q is None:
            self._began = now
            self._q, self._dq, self._last = tick["q_cmd"].copy(), np.zeros_like(self._dq), now
            if math.isfinite(float(tick["width_ref"])) and int(tick["state"]) != State.READY:
                self._closed = float(tick["width_ref"]) < 0.5 * self.limits.arm.hand.width
        dt = min(now - self._last, 5.0 * EVERY)
        self._last = now
        if self.device.speaks == "hand":
            self._q, self._dq = np.clip(tick["q"], self.limits.q_low, self.limits.q_high), tick["dq"].copy()
        elif reading.joints is not None:
            wanted = np.clip(reading.joints, self.limits.q_low, self.limits.q_high)
            self._dq = np.zeros_like(self._dq) if began or dt <= 0.0 else self._smooth((wanted - self._q) / dt, dt)
            self._q = wanted
        else:
            wanted = self._motion.step(self._q, self._in_base(reading.twist, tick), max(dt, EVERY)).dq
            self._dq = self._smooth(wanted, dt)
            if not reading.twist.any():
                self._dq = np.zeros_like(wanted)
            ahead = self._q + dt * self._dq - tick["q_cmd"]
            ahead *= min(1.0, self.config.lead / max(float(np.abs(ahead).max()), 1e-9))
            self._q = tick["q_cmd"] + ahead
        self._send(tick, reading, now)

    def _resting(self) -> str:
        return f"{self.device.name}: {'paused' if self._paused else self.device.released}"

    def _smooth(self, wanted: Array, dt: float) -> Array:
        return np.asarray(self._dq + (wanted - self._dq) * (1.0 - math.exp(-dt / self.config.smooth)))

    def _in_base(self, twist: Array, tick: Records) -> Array:
        """Shares of the full speed as m/s and rad/s in the base frame."""
        turn = self._facing
        if self.config.frame == "tool":
            turn = self.limits.arm.chain.forward(tick["q_cmd"]).rotation
        return np.concatenate([self.config.speed * (turn @ twist[:3]), self.config.turning * (turn @ twist[3:])])

    def _send(self, tick: Records, reading: DeviceReading, now: float) -> None:
        assert self._q is not None
        after = ROW * np.arange(1, ROWS + 1)
        slow = np.clip((after - _STEADY) / (ROWS * ROW - _STEADY), 0.0, 1.0)
        way = np.minimum(after, _STEADY) + (ROWS * ROW - _STEADY) * (slow - 0.5 * slow * slow)
        rows = np.clip(self._q + way[:, None] * self._dq, self.limits.q_low, self.limits.q_high)
        width = self.limits.arm.hand.width
        opening = reading.opening if math.isfinite(reading.opening) else 0.0 if self._closed else width
        self._seq += 1
        chunk = ActionChunk(
            self._seq, float(tick["t_mono"]), now + ROW, ROW, rows, np.full(ROWS, float(np.clip(opening, 0.0, width)))
        )
        self.session.chunks.write(pack_chunk(chunk, inputs=reading.twist, t_infer=now))

    def _keep(self, now: float, reading: DeviceReading | None) -> None:
        """What the console shows and the recorder keeps of the device."""
        record = self._record
        record["t_mono"], record["follows"] = now, self.watch.engaged
        record["told"] = self.watch.trouble.encode()[: DEVICE["told"].itemsize]
        if reading is not None:
            record["held"], record["twist"] = reading.held, reading.twist
            if reading.joints is not None and len(reading.joints) <= len(record["joints"]):
                record["joints"][: len(reading.joints)] = reading.joints
        record["closed"] = self._closed
        self.session.device.write(record)
