"""A whole session in one process and in simulated time: the bridge on a fake arm, a policy, commands, faults."""

import numpy as np

from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.bridge import Bridge
from flowpolicy.real_robot.bridge.ring_records import SessionRings, pack_chunk
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.bridge.supervisor import BridgeConfig
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk, Clock, GripperState
from flowpolicy.real_robot.drivers.fake import FakeArm
from flowpolicy.real_robot.session.accelerated import Done

DT = 0.004
LIMITS = policy_limits(FR3, table=0.0, tool=0.1034)
HOME = np.array(FR3.home)


class StillGripper:
    """Always open."""

    def __init__(self, arm):
        self.state = GripperState(0.0, arm.hand.width, arm.hand.width, grasped=False)

    def command(self, opening):
        pass

    def supervise(self, now):
        return 0.0

    def close(self):
        pass


class Simulation:
    """A session whose clock stands still between ticks."""

    def __init__(self, folder, monkeypatch, **options):
        monkeypatch.setenv("FLOWPOLICY_SHM", str(folder))
        self.t = 100.0
        self.clock = Clock(lambda: self.t, self._sleep)
        self.arm = options.pop("arm", None) or FakeArm(FR3, self.clock)
        self.session = SessionRings("test", create=FR3)
        self.seq, self.policy, self._next_plan = 0, None, 0.0
        limits = options.pop("limits", LIMITS)
        gripper = options.pop("gripper", None)
        self.bridge = Bridge(BridgeConfig(limits, **options), self.arm, gripper, self.session, self.clock, Done)
        self.ticks = []

    def _sleep(self, seconds):
        self.t += seconds

    @property
    def state(self):
        return self.bridge.state

    def run(self, seconds, late=0.0):
        for _ in range(round(seconds / DT)):
            if self.policy is not None and self.t >= self._next_plan:
                self._next_plan = self.t + self.policy(self)
            self.bridge.tick(self.t - late)
            self.ticks.append(self.session.ticks.latest())
            self.t += DT
        return self

    def command(self, *words):
        for word in words:
            self.session.command(word)
            self.run(2 * DT)
        return self

    def send(self, q, t_obs=None, t0=None, dt=0.05, gripper=0.08, frozen=0):
        self.seq += 1
        t_obs = self.t if t_obs is None else t_obs
        q = np.asarray(q, dtype=float)
        chunk = ActionChunk(self.seq, t_obs, t_obs + dt if t0 is None else t0, dt, q, np.full(len(q), gripper), frozen)
        self.session.chunks.write(pack_chunk(chunk))

    def events(self, kind=""):
        records, _, _ = self.session.events.read(0)
        return [bytes(r["text"]).decode() for r in records if kind in ("", bytes(r["kind"]).decode())]

    def column(self, name):
        """A column over the ticks since the arm was first started."""
        first = next(i for i, tick in enumerate(self.ticks) if tick["state"] in (State.READY, State.RUNNING))
        return np.array([tick[name] for tick in self.ticks[first:]])

    def ready(self):
        self.run(2 * DT).command("start")
        assert self.state is State.READY, self.events()
        return self

    def running(self, **options):
        self.ready()
        self.policy = swing(**options)
        self.run(1.0)
        assert self.state is State.RUNNING, self.events()
        return self


def swing(rows=16, dt=0.05, every=0.2, latency=0.0, disagree=0.0, seed=0, amplitude=0.15, middle=HOME):
    """A policy whose joints 1 and 4 follow a slow sine about ``middle``; its chunks disagree by ``disagree`` rad."""
    rng, begin = np.random.default_rng(seed), []

    def decide(sim):
        begin.append(sim.t) if not begin else None
        t_obs = sim.t - latency
        times = t_obs + dt * (1 + np.arange(rows)) - begin[0]
        q = np.tile(middle, (rows, 1))
        grown = 1 - np.exp(-np.maximum(times, 0))
        q[:, 0] += amplitude * grown * np.sin(1.2 * times)
        q[:, 3] += amplitude * grown * np.sin(1.5 * times)
        sim.send(q + disagree * rng.standard_normal(7), t_obs=t_obs, dt=dt)
        return every

    return decide


def peaks(path):
    """Largest speed, acceleration and jerk of positions (t, 7) on ticks."""
    return [np.abs(np.diff(path, n=n, axis=0)).max() / DT**n for n in (1, 2, 3)]
