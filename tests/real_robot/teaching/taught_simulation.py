"""A simulated session whose arm a device drives: its hand, and every kind of device behind the same few words."""

import numpy as np

from flowpolicy.real_robot.teaching.gamepad import Gamepad
from flowpolicy.real_robot.teaching.keyboard import Keyboard, LedByHand
from flowpolicy.real_robot.teaching.leader import LeaderArm, LeaderCalibration, read_packet
from flowpolicy.real_robot.teaching.spacemouse import SpaceMouse
from flowpolicy.real_robot.teaching.teach_loop import TeachConfig, TeachLoop

from ..simulated import DT, HOME, LIMITS, Simulation
from .fake_devices import FakeHid, FakePad

FORWARD = np.array([0.5, 0.5, 0.0, 0.0, 0.0, 0.0])


class Taught(Simulation):
    """A simulated session with a device.

    ``hand(held)`` is called every 12 ms with the time since the beginning; what it does reaches the device.
    """

    def __init__(self, folder, monkeypatch, kind="spacemouse", config=None, watch=None, **options):
        super().__init__(folder, monkeypatch, teacher=kind, **options)
        self.kind, self.held, self.twist, self.paused = kind, False, FORWARD, kind == "guide"
        self.terminal = True
        self.device = getattr(self, f"_{kind}")()
        self.loop = TeachLoop(self.device, self.session, LIMITS, config or TeachConfig(), watch)
        self.policy = lambda sim: self.loop.step(sim.t) - sim.t - 1e-9

    def begin(self, guide=False):
        self.run(2 * DT).command("guide" if guide else "start")
        self.session.command("begin", 1, [0.0] * 3)
        return self.run(2 * DT)

    def hold(self, seconds, held=True, twist=None):
        """The hand does the same for a while: reports come at 83 Hz."""
        self.held = held
        self.twist = FORWARD if twist is None else np.asarray(twist, float)
        for _ in range(round(seconds / (3 * DT))):
            self.send_hand()
            self.run(3 * DT)
        return self

    def engaged(self):
        """An arm that follows the hand."""
        return self.begin().hold(0.7, held=False).hold(0.6)

    def engage_again(self):
        return self.hold(0.3, held=False).hold(0.6)

    @property
    def tool(self):
        return LIMITS.arm.chain.forward(self.ticks[-1]["q_cmd"], LIMITS.tool).position

    # One of each kind: what is made, and how a hand speaks through it.

    def _spacemouse(self):
        self.fake = FakeHid()
        return SpaceMouse(lambda: self.fake)

    def _gamepad(self):
        self.fake = FakePad(lambda: self.t)
        return Gamepad(lambda: self.fake)

    def _keyboard(self):
        return Keyboard(self.session)

    def _guide(self):
        return LedByHand(self.session)

    def _leader(self):
        self.fake = FakeLeader(lambda: self.t)
        calibration = LeaderCalibration((1, -1, 1, -1, 1, 1, 1), (0.1, 0.2, 0.0, 0.0, -0.3, 0.0, 0.0))
        self.inverse = lambda q: np.array(calibration.signs) * (q - np.array(calibration.offsets))
        self.goal = HOME.copy()
        return LeaderArm(lambda: self.fake, calibration, 0.08)

    def send_hand(self):
        if self.kind in ("spacemouse", "gamepad"):
            twist = self.twist * (1 + 0.01 * np.sin(100 * self.t))  # no hand is still
            self.fake.hand(twist, held=self.held)
        elif self.kind == "leader":
            if self.held:
                self.goal[0] += 3 * DT * 0.15
            self.fake.say(self.inverse(self.goal), self.held)
        elif self.terminal:
            key = b"j" if self.kind == "keyboard" and self.held else b""
            if self.kind == "guide":
                self.paused = not self.held
            self.session._now = lambda: self.t
            self.session.type(key, self.paused)


class FakeLeader:
    """A leader's packets without a socket."""

    def __init__(self, clock):
        self.clock, self.packets, self.strange, self.connected, self.seq = clock, [], "", True, 0
        self.offset = 5000.0

    def say(self, q, held=True, late=0, ahead=0.0, grip=None):
        import msgpack

        self.seq += 1
        said = {"v": 1, "seq": self.seq - late, "t": self.clock() + self.offset + ahead, "q": list(map(float, q))}
        said |= {"held": held} | ({} if grip is None else {"grip": grip})
        if self.connected:
            self.packets.append(read_packet(msgpack.packb(said), self.clock()))

    def take(self):
        packets, self.packets = self.packets, []
        strange, self.strange = self.strange, ""
        return packets, strange

    def close(self):
        pass
