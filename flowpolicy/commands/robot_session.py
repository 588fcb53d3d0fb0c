"""What the robot commands do: sessions, episodes, checks."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import UNSTATED, Contract, load_contract, read_contract
from flowpolicy.envs import find_env
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.cameras.cameras import parse_camera, recorded_levels
from flowpolicy.real_robot.drivers.driver_protocols import ArmStoppedError
from flowpolicy.real_robot.session.camera_process import size_path
from flowpolicy.real_robot.session.check import check_contract, speed_warnings, unstated_warnings
from flowpolicy.real_robot.session.episodes import INDEX, read_env_args, require_same_robot, told_gaps
from flowpolicy.real_robot.session.launch import RunningSession, Setup, start_session
from flowpolicy.real_robot.session.operate import PERIOD, Operator, Outcome, play_episode, wait_for_recovery
from flowpolicy.real_robot.session.operator_keys import reading_keys
from flowpolicy.real_robot.session.policy_process import is_address, read_token
from flowpolicy.real_robot.session.service_levels import ServiceLevels, service_levels
from flowpolicy.real_robot.session.session_console import ConsoleView
from flowpolicy.real_robot.tasks.lift_servo import ServoConfig
from flowpolicy.real_robot.tasks.tasks import Lift, Plan, Reach, Task, Waypoint
from flowpolicy.real_robot.twin.twin import TwinLink

_RATE = 250.0


@dataclasses.dataclass(frozen=True)
class PolicyAt:
    """Where a policy decides."""

    run: str
    """Run or checkpoint folder, or the address of a server: ws://host:port."""
    token_file: Path | None = None
    """File with what the server wants to see; FLOWPOLICY_TOKEN unless given."""
    engine: str = "auto"
    """What computes a run's decisions, see :func:`flowpolicy.policy.load_engine`; a server has chosen its own."""

    def __post_init__(self) -> None:
        if is_address(self.run) and self.engine != "auto":
            raise ConfigError(
                f"--engine {self.engine} with a policy server, which has chosen its engine",
                fix="flowpolicy serve --engine ...",
            )

    def options(self, seed: int) -> dict[str, Any]:
        """What the policy process is told."""
        run = self.run if is_address(self.run) else str(Path(self.run).absolute())
        token_file = str(self.token_file.absolute()) if self.token_file else None
        return {"run": run, "seed": seed, "token_file": token_file, "engine": self.engine}

    def contract(self) -> Contract:
        """What it was trained for; a server is asked."""
        if not is_address(self.run):
            return load_contract(resolve(Path(self.run)) / "contract.json")
        from flowpolicy.serve.client import PolicyClient

        token = read_token(str(self.token_file) if self.token_file else None)
        with PolicyClient(self.run, token) as client:
            return read_contract(client.contract, self.run)


def task_of(contract: Contract) -> str:
    """Name of the task that a policy was trained for."""
    return _config(contract).task


def check_policy(policy: PolicyAt, setup: Setup) -> tuple[list[str], list[str]]:
    """What was compared between a policy and the robot, and what would be clipped; raises where they disagree."""
    from flowpolicy.core.files import read_tensors

    contract = policy.contract()
    robot = dataclasses.replace(_config(contract), arm=setup.arm, tool=setup.tool_length).spec()
    lines = check_contract(contract, robot)
    warnings = unstated_warnings(contract, robot)
    if is_address(policy.run):  # a server does not tell how it scales actions
        return lines, warnings
    folder = resolve(Path(policy.run))
    stored = read_tensors(folder / "normalizer.safetensors")
    # The policy's scaled actions are clamped to [-1, 1], so this is all that it can ask for.
    names = ("offset", "scale", "limit")
    middle, scale, limit = (stored[f"action_scaling.{name}"].double().numpy()[:-1] for name in names)
    largest = (np.abs(middle) + np.minimum(limit, 1.0) / scale) * contract.spec.action.rate_hz
    return lines, warnings + speed_warnings(largest, np.array(setup.limits.velocity))


def play(
    setup: Setup, task_name: str, out: Path, episodes: int, seed: int, policy: PolicyAt | None, patience: float
) -> list[Outcome]:
    """Play and record episodes of a policy, or of the scripted operator where ``policy`` is None.

    A fault ends its episode; the next one begins when the bridge has recovered, within ``patience`` s.
    """
    config = ArmTaskConfig(task_name, arm=setup.arm, tool=setup.tool_length)  # type: ignore[arg-type]
    spec = config.spec()
    outcomes: list[Outcome] = []
    _require_something_to_do(task_name, setup)
    out.mkdir(parents=True, exist_ok=True)
    if (out / INDEX).exists():  # refused before anything moves
        require_same_robot(out / INDEX, read_env_args(out / INDEX), config.env_args(), "this session's")
    with start_session(setup) as running, reading_keys(running.session) as keys:
        task = _task(task_name, running)
        meta = {
            "env_args": config.env_args(),
            "keys": list(spec.observation),
            "arm": setup.arm,
            "tool": setup.tool_length,
            "rate_hz": spec.action.rate_hz,
            "cameras": _start_cameras(running),
        }
        running.start("recorder_process", {"folder": str(out.absolute()), "meta": meta})
        _wait_for_recorder(running)
        if policy is not None:
            running.start("policy_process", policy.options(seed))
            _wait_for_policy(running)
        operator, view = Operator(running), ConsoleView(running.session)

        def watch(tick: Any) -> None:
            view.watch(tick)
            keys.poll(tick)

        # Journals that could not be salvaged keep their number too.
        first = 1 + max((int(p.stem.rpartition("_")[2]) for p in out.glob("*episode_*")), default=0)
        for number in range(first, first + episodes):
            rng = numpy_generator(seed, "robot", task_name, number)
            wait_for_recovery(running, patience, watch)
            try:
                outcome = play_episode(
                    running,
                    task,
                    number,
                    rng,
                    horizon_s=config.horizon / spec.action.rate_hz,
                    demonstrate=None if policy else functools.partial(task.demonstrate, rng=rng),
                    operator=operator,
                    watch=watch,
                )
            except ArmStoppedError as stopped:
                operator.end()
                outcome = Outcome(number, False, 0.0, stopped.what)
            outcomes.append(outcome)
            won = sum(one.success for one in outcomes)
            sys.stderr.write(
                f"episode {number}: {outcome.reason} after {outcome.seconds:.1f} s ({won}/{len(outcomes)})\n"
            )
    _report(setup, out, outcomes, service_levels(view.ticks, _RATE))
    return outcomes


def _report(setup: Setup, out: Path, outcomes: list[Outcome], levels: ServiceLevels | None) -> None:
    """Successes, service levels, and how each camera fared."""
    # In simulated time nothing is late and nothing is lost: what the first line tells.
    lines = levels.lines()[setup.driver == "scene" :] if levels else []
    files = [path for one in outcomes if (path := out / f"episode_{one.number:04d}.hdf5").exists()]
    lines += [camera.line(name) for name, camera in recorded_levels(files).items()]
    lines += [f"{path.name}: {gaps}" for path in files if (gaps := told_gaps(path))]
    sys.stdout.write("\n".join([f"success {sum(one.success for one in outcomes)}/{len(outcomes)}", *lines]) + "\n")


def replay_episode(setup: Setup, file: Path, episode: str) -> int:
    """Play the recorded reference open-loop; prints how far the arm came from the recorded positions."""
    from flowpolicy.data.hdf5 import open_hdf5, read_array, require_group

    with open_hdf5(file) as stored:
        demo = require_group(require_group(stored, "data", file), episode, file)
        actions = read_array(demo, "actions", file)
        measured = read_array(require_group(demo, "obs", file), "robot0_joint_pos", file)
        path = read_array(require_group(demo, "robot", file), "q_ref", file)
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
    worst = float(np.abs(played - measured)[: len(times) - 1].max())
    sys.stdout.write(f"{outcome.reason}; largest distance from the recorded joints {1e3 * worst:.1f} mrad\n")
    return 0 if outcome.reason == "time is up" else 1


class _Rows(Plan):
    """A plan that runs straight from row to row, as recorded."""

    def rows(self, times: np.ndarray, tick: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Linear between the recorded rows."""
        q = np.stack([np.interp(times, self._times, self._q[:, joint]) for joint in range(self._q.shape[1])], 1)
        leg = np.clip(np.searchsorted(self._times, times) - 1, 0, len(self._gripper) - 1)
        return q, self._gripper[leg]


class _Replay:
    """A task that only time ends."""

    name = "replay"

    def __init__(self, plan: Plan) -> None:
        self._plan, self.started = plan, 0.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Nothing."""
        return np.zeros(3)

    def look(self) -> None:
        """Nothing."""

    def aside(self, tick: Any, rng: Any) -> Plan:
        """To where the recording began."""
        q, opening = self._plan.rows(np.zeros(1))
        return Plan(tick["q_cmd"], float(opening[0]), [Waypoint(q[0], float(opening[0]), 1.5)])

    def solved(self, tick: Any) -> bool:
        """Never."""
        return False

    def demonstrate(self, tick: Any, rng: Any = None) -> Plan:
        """The recorded rows."""
        self.started = float(tick["t_mono"])
        return self._plan


def _config(contract: Contract) -> ArmTaskConfig:
    config = find_env(contract.spec.env_id)
    if not isinstance(config, ArmTaskConfig):
        raise ContractError(
            f"the policy was trained for '{contract.spec.env_id}'",
            expected="a task of an arm (franka/... or ur5e/...)",
            fix="train on a recording of `flowpolicy robot record`, e.g. with dm1-franka-reach",
        )
    return config


def _require_something_to_do(name: str, setup: Setup) -> None:
    if name != "reach" and setup.driver == "fake":
        raise ConfigError(
            f"the driver 'fake' has nothing to {name}",
            expected="--driver scene; or --driver franky and the twin: flowpolicy robot twin",
        )


def _task(name: str, running: RunningSession) -> Task:
    if name == "reach":
        return Reach(running.setup.limits)
    arm = getattr(running, "arm", None)  # of a session in this process
    return Lift(running.setup.limits, TwinLink() if arm is None else arm.scene, ServoConfig())


def _start_cameras(running: RunningSession) -> dict[str, list[int]]:
    """Start a process per camera; height and width of each, once it has taken a picture."""
    names = [parse_camera(spec)[0] for spec in running.setup.cameras]
    for name, spec in zip(names, running.setup.cameras, strict=True):
        running.start("camera_process", {"camera": spec}, f"camera_{name}")
    sizes = {}
    for name in names:
        path = size_path(running.session.folder, name)
        _wait_for(running, path.exists, f"the camera '{name}' took no picture within 60 s")
        sizes[name] = json.loads(path.read_text(encoding="utf-8"))
    return sizes


def _wait_for_recorder(running: RunningSession) -> None:
    _wait_for(running, lambda: running.session.recorder.count > 0, "the recorder did not start within 30 s")


def _wait_for_policy(running: RunningSession) -> None:
    _wait_for(running, lambda: running.session.chunks.count > 0, "the policy did not start within 60 s")


def _wait_for(running: RunningSession, ready: Any, complaint: str) -> None:
    deadline = running.clock.now() + 60.0
    while not ready():
        running.require_alive()
        if running.clock.now() > deadline:
            raise ConfigError(complaint, fix="the machine may be overloaded; try again")
        running.clock.sleep(0.02)
