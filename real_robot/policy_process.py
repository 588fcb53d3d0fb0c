"""The policy as a process: reads the bridge's ticks, writes chunks. The only part of the robot side with torch.

``python -m flowpolicy.real_robot.policy_process OPTIONS``. Anything that offers ``contract`` and ``chunk`` can stand in
for :class:`LocalPolicy`, for instance a client of a policy server on another host.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import Contract
from flowpolicy.policy.history import ObservationHistory
from flowpolicy.policy.policy import Policy
from flowpolicy.real_robot.chunks import Mode, freeze
from flowpolicy.real_robot.launch import orphaned, read_options
from flowpolicy.real_robot.observations import observe
from flowpolicy.real_robot.protocols import ActionChunk
from flowpolicy.real_robot.records import CHUNK, Session, pack_chunk
from flowpolicy.real_robot.shared import Records
from flowpolicy.real_robot.states import State

_ALIVE = 0.05  # s between two signs of life


class ChunkSource(Protocol):
    """What decides."""

    @property
    def contract(self) -> Contract:
        """What it was trained for."""

    def reset(self, episode: int) -> None:
        """Begin an episode: its random stream depends on the number alone."""

    def chunk(self, obs: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """(h, 8) actions, steps of the joints in rad and opening in m, for observation histories name -> (o, d)."""


class LocalPolicy:
    """A trained policy in this process.

    Args:
        run: run or checkpoint folder.
        seed: of its noise.

    """

    def __init__(self, run: str, seed: int) -> None:
        torch.set_num_threads(1)
        self._policy, self._seed = Policy.load(run), seed
        self._policy.require_no_memory()
        self._generator = torch_generator(seed, "robot", 0)

    @property
    def contract(self) -> Contract:
        """What it was trained for."""
        return self._policy.contract

    def reset(self, episode: int) -> None:
        """Begin an episode."""
        self._generator = torch_generator(self._seed, "robot", episode)

    def chunk(self, obs: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """(h, 8) actions."""
        batch = {key: torch.from_numpy(value[None]) for key, value in obs.items()}
        return self._policy.act(batch, self._generator)[0].double().numpy()


class PolicyLoop:
    """Decides once per ``execute`` rows while the arm is ready or running.

    Args:
        source: the policy.
        session: rings.
        tool: distance from flange to tool point, m.
        mode: 'rtc' commits rows before they are due.

    """

    def __init__(self, source: ChunkSource, session: Session, tool: float, mode: Mode) -> None:
        contract = source.contract
        self.source, self.session, self.tool, self.mode = source, session, tool, mode
        self.dt = 1.0 / contract.spec.action.rate_hz
        self._keys, self._execute = tuple(contract.spec.observation), contract.execute
        self._history = ObservationHistory(contract)
        self._previous: ActionChunk | None = None
        self._episode = self._seq = self._steps = 0
        self._latency = 0.0

    def step(self, now: float) -> float:
        """Look at the robot at ``now`` s, decide if it is time; returns when to look again, s."""
        tick = self.session.ticks.latest()
        active = tick is not None and State(int(tick["state"])) in (State.READY, State.RUNNING, State.HOLD)
        if tick is None or not active or not tick["episode"]:
            self._episode = 0
            self.session.chunks.write(np.zeros((), CHUNK))
            return now + _ALIVE
        if int(tick["episode"]) != self._episode:
            self._begin(int(tick["episode"]))
        current = {key: observe(tick, key, self.tool).astype(np.float32) for key in self._keys}
        self._history.append(current)
        if self._steps % self._execute == 0:
            self._decide(tick, current)
        else:
            self.session.chunks.write(np.zeros((), CHUNK))
        self._steps += 1
        return now + self.dt

    def _begin(self, episode: int) -> None:
        self._episode, self._steps, self._previous = episode, 0, None
        self._history.clear()
        self.source.reset(episode)

    def _decide(self, tick: Records, current: dict[str, NDArray[np.float32]]) -> None:
        t_obs = float(tick["t_mono"])
        rows = self.source.chunk(self._history.stacked())
        done = time.monotonic()
        # A slow mean of the latency: freezing one row too many costs less than one too few.
        self._latency = max(done - t_obs, 0.9 * self._latency)
        self._seq += 1
        q = tick["q_cmd"] + rows[:, :7].cumsum(0)
        chunk = ActionChunk(self._seq, t_obs, t_obs + self.dt, self.dt, q, rows[:, 7])
        if self.mode == "rtc":
            chunk = freeze(chunk, self._previous, self._latency)
        self._previous = chunk
        missed = math.floor((done - t_obs) / (self._execute * self.dt))
        inputs = np.concatenate([current[key] for key in self._keys])
        self.session.chunks.write(pack_chunk(chunk, inputs=inputs, t_infer=done, missed=missed))


def main() -> None:
    """Decide until SIGTERM."""
    setup, options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    source: Any = LocalPolicy(options["run"], options["seed"])
    loop = PolicyLoop(source, Session(setup.session), setup.tool, setup.mode)
    due = time.monotonic()
    while not orphaned():
        due = max(loop.step(time.monotonic()), due)
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
