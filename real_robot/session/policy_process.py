"""The policy as a process: reads the bridge's ticks, writes chunks.

``python -m flowpolicy.real_robot.session.policy_process OPTIONS``. What decides is a policy in this process, or the
client of a policy server on another host; then no torch is imported here.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ActionError
from flowpolicy.core.files import read_secret
from flowpolicy.core.seed import derive
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.engines import ENGINES, Engine, load_engine
from flowpolicy.policy.session import ChunkSource, Session
from flowpolicy.real_robot.arm.action_conventions import convention_of
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.bridge.chunks import Mode, freeze, hermite
from flowpolicy.real_robot.bridge.ring_records import SessionRings, pack_chunk
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.bridge.watchdogs import Since
from flowpolicy.real_robot.cameras.camera_setup import noisy_cameras
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk
from flowpolicy.real_robot.session.camera_process import open_watches
from flowpolicy.real_robot.session.launch import Setup, orphaned, read_options, run_process
from flowpolicy.real_robot.session.observations import observe
from flowpolicy.real_robot.session.turns import read_turn

_ALIVE = 0.05  # s between two signs of life
_DOUBT = 0.12  # s that a camera is not to be trusted before the arm holds; a single late picture costs one decision
_COMPILED = ("aotinductor", "compile", "cuda_graph", "compiled_graph", "tensorrt")
"""Engines that take a minute to build: not what 'auto' measures while a robot waits."""


def load_source(options: dict[str, Any], note: Callable[[str], None] = lambda text: None) -> Engine | ChunkSource:
    """What decides as the options of the process say: the engine of a run, or the server at an address."""
    if is_address(options["run"]):
        from flowpolicy.real_robot.session.remote_policy import RemotePolicy

        return RemotePolicy(options["run"], read_token(options.get("token_file")), options["seed"], note)
    quick = [name for name in ENGINES if name not in _COMPILED]
    device = options.get("device", "cpu")
    engine = load_engine(options["run"], options.get("engine", "auto"), among=quick, device=device)
    seen = ", ".join(
        f"{name} {1e3 * found:.2f} ms" if isinstance(found, float) else f"{name}: {found}"
        for name, found in engine.measured.items()
    )
    note(f"engine '{engine.name}', ready after {engine.load_s:.1f} s{seen and f'; {seen}'}")
    return engine


def is_address(run: str) -> bool:
    """Whether a policy is named by the address of its server."""
    return run.startswith(("ws://", "wss://"))


def read_token(path: str | None) -> str:
    """What a policy server wants to see: content of a file, else of FLOWPOLICY_TOKEN, else nothing."""
    return os.environ.get("FLOWPOLICY_TOKEN", "") if path is None else read_secret(Path(path))


class PolicyLoop:
    """Decides once per ``execute`` rows while the arm is ready or running.

    Args:
        acting: what decides.
        session: rings.
        tool: distance from flange to tool point, m.
        mode: 'rtc' commits rows before they are due.
        now: the bridge's clock.
        note: told what is wrong with a chunk.
        noisy: cameras no two pictures of which are alike.
        numbers: of the chunks, growing: shared where policies take turns.

    Raises:
        ContractError: the policy's actions are not those of the session's arm, or it sees by a camera that does not
            run.

    """

    def __init__(
        self,
        acting: Session,
        session: SessionRings,
        tool: float,
        mode: Mode,
        now: Callable[[], float] = time.monotonic,
        note: Callable[[str], None] = lambda text: None,
        noisy: Collection[str] = (),
        numbers: Iterator[int] | None = None,
    ) -> None:
        contract = acting.contract
        self.acting, self.session, self.tool, self.mode, self._now, self._note = acting, session, tool, mode, now, note
        self._convention = convention_of(contract.spec.action, policy_limits(session.arm, table=0.0, tool=tool))
        self.dt = 1.0 / contract.spec.action.rate_hz
        stated = contract.spec.observation.items()
        self._keys = tuple(key for key, one in stated if one.kind == "state" and not one.words)
        self._cameras = open_watches(session.folder, contract.spec.images, noisy)
        self._troubled = Since()
        self._execute = acting.execute
        self._prefix = acting.source.prefix
        self._seen: dict[str, NDArray[np.float32]] = {}  # one row earlier
        self._previous: ActionChunk | None = None
        self._episode = self._steps = 0
        self._numbers = itertools.count(1) if numbers is None else numbers
        self.noise: int | None = None
        """Seed of the next episode's noise; it follows from the episode's number unless given."""
        self._latency = 0.0

    def step(self, now: float) -> float:
        """Look at the robot at ``now`` s, decide if it is time; returns when to look again, s."""
        tick = self.session.ticks.latest()
        active = tick is not None and State(int(tick["state"])) in (State.READY, State.RUNNING, State.HOLD)
        if tick is None or not active or not tick["episode"]:
            self._episode = 0
            self.session.alive()
            return now + _ALIVE
        if int(tick["episode"]) != self._episode:
            self._begin(int(tick["episode"]))
        current = {
            key: observe(tick, key, self.session.arm, self.tool, self._seen.get(key)).astype(np.float32)
            for key in self._keys
        }
        self._seen = current
        if doubt := self._look(tick):
            lasted = self._troubled.update(True, now)
            self.session.alive(doubt if lasted >= _DOUBT else "")
            if not lasted:
                self._note(doubt)
            return now + self.dt
        self._troubled.update(False, now)
        # A history keeps what it is given: every record of a watch is a copy of its own.
        pictures = {key: watch.record["rgb"] for key, watch in self._cameras.items() if watch.record is not None}
        self.acting.episode.see(current | pictures)
        if self._steps % self._execute == 0:
            self._decide(tick, current)
        else:
            self.session.alive()
        self._steps += 1
        return now + self.dt

    def _look(self, tick: Records) -> str:
        """Read the newest pictures; why one of them is not to be trusted, empty if all are."""
        for watch in self._cameras.values():
            watch.look(tick["q"])
        troubles = [watch.trouble(self._now(), tick["q"]) for watch in self._cameras.values()]
        return "; ".join(trouble for trouble in troubles if trouble)

    def _begin(self, episode: int) -> None:
        self._episode, self._steps, self._previous = episode, 0, None
        self._seen = {}
        self.acting.reset(derive(self.acting.seed, "robot", episode) if self.noise is None else self.noise)

    def _decide(self, tick: Records, current: dict[str, NDArray[np.float32]]) -> None:
        t_obs = float(tick["t_mono"])
        due, contract = self._due(tick), self.acting.contract
        size = (contract.chunk, contract.spec.action.size)
        try:
            rows = self.acting.episode.decide(None if due is None else Committed.of([due], size))
        except ActionError as error:
            self._note(error.what)
            rows = None
        done = self._now()
        if rows is None:  # the bridge goes on with what it has, and holds when that ends
            self.session.alive()
            return
        rows = rows.astype(np.float64)
        # A slow mean of the latency: freezing one row too many costs less than one too few.
        self._latency = max(done - t_obs, 0.9 * self._latency)
        asked = self._convention.joints(rows, tick["q_cmd"], tick["dq_cmd"], self.dt)
        frozen = 0 if due is None else len(due)
        # The oldest picture decides how old the observation is; rows are due from the tick on, as in recordings.
        seen = min([t_obs, *(float(w.record["t_mono"]) for w in self._cameras.values() if w.record is not None)])
        chunk = ActionChunk(next(self._numbers), seen, t_obs + self.dt, self.dt, asked.q, asked.gripper, frozen)
        if self.mode == "rtc" and not self._prefix:
            chunk = freeze(chunk, self._previous, self._latency)
        self._previous = chunk
        missed = math.floor((done - t_obs) / (self._execute * self.dt))
        inputs = np.concatenate([np.zeros(0), *(current[key] for key in self._keys)])
        self.session.chunks.write(pack_chunk(chunk, inputs=inputs, t_infer=done, missed=missed, told=asked.told))

    def _due(self, tick: Records) -> NDArray[np.float64] | None:
        """(c, n + 1) actions of the previous chunk that fall due before the next one can arrive."""
        previous = self._previous
        if self.mode != "rtc" or not self._prefix or previous is None:
            return None
        t_obs = float(tick["t_mono"])
        due = t_obs + self.dt * np.arange(1, 1 + min(math.ceil(self._latency / self.dt), self._prefix))
        due = due[due <= previous.end]
        if not len(due):
            return None
        q = np.stack([tick["q_cmd"], *(hermite(previous, t)[0] for t in due)])
        at = np.clip(np.rint((due - previous.t0) / previous.dt).astype(int), 0, len(previous.gripper) - 1)
        return self._convention.actions(q[:-1], np.diff(q, axis=0), previous.gripper[at], self.dt)


class TakingTurns:
    """Policies of one session that play its episodes in turns; one plays them all.

    Args:
        loops: of the policies.
        session: rings; beside them it is said whose turn an episode is.

    """

    def __init__(self, loops: Sequence[PolicyLoop], session: SessionRings) -> None:
        self._loops, self._session, self._turn = list(loops), session, (0, 0)  # episode, which

    def step(self, now: float) -> float:
        """Let the policy whose turn it is look and decide; returns when to look again, s."""
        tick = self._session.ticks.latest()
        episode = 0 if tick is None else int(tick["episode"])
        if episode != self._turn[0]:
            which, noise = read_turn(self._session.folder, episode)
            self._turn = episode, which
            self._loops[which].noise = noise
        return self._loops[self._turn[1]].step(now)


def make_loops(
    options: dict[str, Any],
    session: SessionRings,
    setup: Setup,
    now: Callable[[], float] = time.monotonic,
    note: Callable[[str], None] = lambda text: None,
) -> TakingTurns:
    """What decides in a session, as the options of its process say.

    Args:
        options: of the policy; ``others`` are those of policies that take turns with it.
        session: rings.
        setup: the robot.
        now: the bridge's clock.
        note: told what goes wrong.

    """
    numbers, noisy, loops = itertools.count(1), noisy_cameras(setup.cameras), []
    for one in (options, *options.get("others", ())):
        acting = Session(load_source(one, note), seed=one["seed"], instruction=one.get("instruction", ""))
        loops.append(PolicyLoop(acting, session, setup.tool_length, setup.mode, now, note, noisy, numbers))
    return TakingTurns(loops, session)


def main() -> None:
    """Decide until SIGTERM."""
    setup, options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    note = functools.partial(print, flush=True)  # the log of this process
    loop = make_loops(options, SessionRings(setup.session), setup, note=note)
    due = time.monotonic()
    while not orphaned():
        due = max(loop.step(time.monotonic()), due)
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    run_process(main)
