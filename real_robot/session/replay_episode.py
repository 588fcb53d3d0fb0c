"""A recorded episode played again, open-loop: what the arm makes of its own commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import UNSTATED
from flowpolicy.data.hdf5 import open_hdf5, read_array, require_group
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.session.episodes import read_env_args
from flowpolicy.real_robot.session.launch import Setup, start_session
from flowpolicy.real_robot.session.operate import PERIOD, Operator, play_episode
from flowpolicy.real_robot.session.session_console import ConsoleView
from flowpolicy.real_robot.tasks.tasks import Waypoint, WaypointPath


@dataclasses.dataclass(frozen=True)
class ReplayedEpisode:
    """What came of it."""

    complete: bool
    """Whether it was played to its end."""
    reason: str
    """Why it ended."""
    distance: float
    """Largest distance of any joint from its recorded position, in rad."""
    tool: float
    """Largest distance of the tool point from the path that was recorded, in m."""


def replay_episode(setup: Setup, file: Path, episode: str) -> ReplayedEpisode:
    """Play the recorded reference open-loop, and measure how far the arm came from the recorded positions.

    Args:
        setup: the robot, with the arm and the tool that the file was recorded with.
        file: a recording.
        episode: its name in the file.

    Raises:
        ContractError: it was recorded with another arm or tool.
        ConfigError: nothing was played.

    """
    with open_hdf5(file) as stored:
        demo = require_group(require_group(stored, "data", file), episode, file)
        actions = read_array(demo, "actions", file)
        measured = read_array(require_group(demo, "obs", file), "robot0_joint_pos", file)
        # What a person led is what was commanded; a policy's reference is played as it was.
        led = "q_cmd" if "device" in demo else "q_ref"
        path = read_array(require_group(demo, "robot", file), led, file)
    here, joints = ArmTaskConfig(arm=setup.arm, tool=setup.tool_length).spec(), setup.arm_model.joints
    for field, said in (("robot", here.robot), ("tool", here.tool)):
        stated = read_env_args(file).get(field, said)
        if stated not in (UNSTATED, said):
            raise ContractError(
                f"{file} was recorded with another {field}: {stated}, here {said}",
                fix="replay it with the --arm and --tool that it was recorded with",
            )
    if actions.shape[1:] != (joints + 1,):
        raise ContractError(
            f"{file}: {episode} has actions of shape {actions.shape}",
            expected=f"(steps, {joints + 1}): steps of the joints, and opening, as `robot record` writes them",
        )
    legs = [Waypoint(q, float(opening), PERIOD) for q, opening in zip(path[1:], actions[:-1, -1], strict=True)]
    plan = _Rows(path[0], float(actions[0, -1]), legs)
    task = _Replay(plan)
    with start_session(setup) as running:
        view = ConsoleView(running.session)
        outcome = play_episode(
            running,
            task,
            1,
            numpy_generator(0, "replay"),
            horizon_s=plan.seconds + 0.5,
            demonstrate=task.demonstrate,
            operator=Operator(running),
            watch=view.watch,
        )
    ticks = view.ticks
    ticks = ticks[(ticks["episode"] == 1) & (ticks["chunk"] > 0)]
    if not len(ticks):
        raise ConfigError(f"nothing was played: {outcome.reason}")
    times = task.started + PERIOD * np.arange(len(measured))
    played = np.stack([np.interp(times, ticks["t_mono"], ticks["q"][:, joint]) for joint in range(joints)], 1)
    chain, rows = setup.arm_model.chain, len(times) - 1
    worst = float(np.abs(played - measured)[:rows].max())
    places = [chain.forward(q[:rows], setup.tool_length).position for q in (played, measured)]
    apart = float(path_distances(places[0], places[1]).max())
    return ReplayedEpisode(outcome.reason == "time is up", outcome.reason, worst, apart)


def path_distances(points: np.ndarray, path: np.ndarray) -> np.ndarray:
    """(p,) distances in m of points (p, 3) from the straight lines between the points (n, 3) of a path."""
    begin, way = path[:-1], np.diff(path, axis=0)
    away = points[:, None] - begin
    share = (away * way).sum(-1) / np.maximum((way * way).sum(-1), 1e-18)
    nearest = np.clip(share, 0.0, 1.0)[..., None] * way
    return np.asarray(np.linalg.norm(away - nearest, axis=-1).min(-1))


class _Rows(WaypointPath):
    """A plan that runs straight from row to row, as recorded."""

    def rows(self, times: np.ndarray, tick: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Linear between the recorded rows."""
        q = np.stack([np.interp(times, self._times, self._q[:, joint]) for joint in range(self._q.shape[1])], 1)
        leg = np.clip(np.searchsorted(self._times, times) - 1, 0, len(self._gripper) - 1)
        return q, self._gripper[leg]


class _Replay:
    """A task that only time ends."""

    name = "replay"

    def __init__(self, plan: WaypointPath) -> None:
        self._plan, self.started = plan, 0.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Nothing."""
        return np.zeros(3)

    def look(self) -> None:
        """Nothing."""

    def aside(self, tick: Any, rng: Any) -> WaypointPath:
        """To where the recording began."""
        q, opening = self._plan.rows(np.zeros(1))
        return WaypointPath(tick["q_cmd"], float(opening[0]), [Waypoint(q[0], float(opening[0]), 1.5)])

    def solved(self, tick: Any) -> bool:
        """Never."""
        return False

    def demonstrate(self, tick: Any, rng: Any = None) -> WaypointPath:
        """The recorded rows."""
        self.started = float(tick["t_mono"])
        return self._plan
