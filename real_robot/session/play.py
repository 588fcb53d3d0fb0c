"""Episodes of a policy, or of the scripted operator, played and recorded in one session; and what is checked before."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.files import read_tensors
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import Contract, load_contract
from flowpolicy.envs import find_env
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.cameras.cameras import parse_camera, recorded_levels
from flowpolicy.real_robot.drivers.driver_protocols import ArmStoppedError
from flowpolicy.real_robot.session.camera_process import size_path
from flowpolicy.real_robot.session.check import check_contract, speed_warnings, unstated_warnings
from flowpolicy.real_robot.session.episodes import INDEX, read_env_args, require_same_robot, told_gaps
from flowpolicy.real_robot.session.launch import RunningSession, Setup, start_session
from flowpolicy.real_robot.session.operate import EpisodeOutcome, Operator, play_episode, wait_for_recovery
from flowpolicy.real_robot.session.operator_keys import reading_keys
from flowpolicy.real_robot.session.policy_process import is_address, read_token
from flowpolicy.real_robot.session.remote_policy import served_contract
from flowpolicy.real_robot.session.service_levels import ServiceLevels, service_levels
from flowpolicy.real_robot.session.session_console import ConsoleView
from flowpolicy.real_robot.tasks.lift_servo import ServoConfig
from flowpolicy.real_robot.tasks.tasks import Lift, Reach, Task
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
    device: str = "cpu"
    """Where; a server has chosen its own."""

    def __post_init__(self) -> None:
        for flag, value, usual in (("engine", self.engine, "auto"), ("device", self.device, "cpu")):
            if is_address(self.run) and value != usual:
                raise ConfigError(
                    f"--{flag} {value} with a policy server, which has chosen its {flag}",
                    fix=f"flowpolicy serve --{flag} ...",
                )

    def options(self, seed: int) -> dict[str, Any]:
        """What the policy process is told."""
        run = self.run if is_address(self.run) else str(Path(self.run).absolute())
        token_file = str(self.token_file.absolute()) if self.token_file else None
        return {"run": run, "seed": seed, "token_file": token_file, "engine": self.engine, "device": self.device}

    def contract(self) -> Contract:
        """What it was trained for; a server is asked."""
        if not is_address(self.run):
            return load_contract(resolve(Path(self.run)) / "contract.json")
        return served_contract(self.run, read_token(str(self.token_file) if self.token_file else None))


def task_of(contract: Contract) -> str:
    """Name of the task that a policy was trained for."""
    return _config(contract).task


def check_policy(policy: PolicyAt, setup: Setup) -> tuple[list[str], list[str]]:
    """What was compared between a policy and the robot, and what would be clipped; raises where they disagree."""
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


@dataclasses.dataclass(frozen=True)
class Played:
    """What came of a session."""

    outcomes: list[EpisodeOutcome]
    lines: list[str]
    """Successes, service levels, and how each camera fared."""


def play(
    setup: Setup,
    task_name: str,
    out: Path,
    episodes: int,
    seed: int,
    policy: PolicyAt | None,
    patience: float,
    tell: Callable[[str], None] = lambda line: None,
) -> Played:
    """Play and record episodes of a policy, or of the scripted operator where ``policy`` is None.

    A fault ends its episode; the next one begins when the bridge has recovered.

    Args:
        setup: the robot.
        task_name: what is played.
        out: folder of the recordings.
        episodes: how many.
        seed: of the episodes and the policy's noise.
        policy: what decides.
        patience: seconds to wait for the bridge to recover.
        tell: told how each episode ended.

    """
    config = ArmTaskConfig(task_name, arm=setup.arm, tool=setup.tool_length)  # type: ignore[arg-type]
    spec = config.spec()
    outcomes: list[EpisodeOutcome] = []
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
                outcome = EpisodeOutcome(number, False, 0.0, stopped.what)
            outcomes.append(outcome)
            won = sum(one.success for one in outcomes)
            tell(f"episode {number}: {outcome.reason} after {outcome.seconds:.1f} s ({won}/{len(outcomes)})")
    return Played(outcomes, _summary(setup, out, outcomes, service_levels(view.ticks, _RATE)))


def _summary(setup: Setup, out: Path, outcomes: list[EpisodeOutcome], levels: ServiceLevels | None) -> list[str]:
    # In simulated time nothing is late and nothing is lost: what the first line tells.
    lines = levels.lines()[setup.driver == "scene" :] if levels else []
    files = [path for one in outcomes if (path := out / f"episode_{one.number:04d}.hdf5").exists()]
    lines += [camera.line(name) for name, camera in recorded_levels(files).items()]
    lines += [f"{path.name}: {gaps}" for path in files if (gaps := told_gaps(path))]
    return [f"success {sum(one.success for one in outcomes)}/{len(outcomes)}", *lines]


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
