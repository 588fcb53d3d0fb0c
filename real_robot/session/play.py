"""Episodes of a policy, or of the scripted operator, played and recorded in one session; and what is checked before."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.files import read_tensors
from flowpolicy.core.run_places import local_run
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import ActionSpec, Contract, ImageSpec, image_json, load_contract
from flowpolicy.data.hdf5_frames import SUFFIX
from flowpolicy.envs import find_env
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.inputs import require_followed
from flowpolicy.real_robot.arm.action_conventions import convention_of
from flowpolicy.real_robot.cameras.camera_setup import noisy_cameras, parse_cameras
from flowpolicy.real_robot.cameras.cameras import recorded_levels
from flowpolicy.real_robot.drivers.driver_protocols import ArmStoppedError
from flowpolicy.real_robot.session.camera_check import require_cameras, swapped_warnings, with_cameras
from flowpolicy.real_robot.session.camera_process import image_path, open_watches, stated_camera
from flowpolicy.real_robot.session.check import check_contract, speed_warnings, unstated_warnings
from flowpolicy.real_robot.session.episodes import INDEX, next_number, read_env_args, require_same_robot, told_gaps
from flowpolicy.real_robot.session.launch import RunningSession, Setup, start_session
from flowpolicy.real_robot.session.operate import EpisodeOutcome, Operator, play_episode, wait_for_recovery
from flowpolicy.real_robot.session.operator_keys import reading_keys
from flowpolicy.real_robot.session.policy_process import is_address, read_token
from flowpolicy.real_robot.session.remote_policy import served_contract
from flowpolicy.real_robot.session.service_levels import service_levels
from flowpolicy.real_robot.session.session_console import ConsoleView
from flowpolicy.real_robot.session.turns import write_turn
from flowpolicy.real_robot.tasks.lift_servo import ServoConfig
from flowpolicy.real_robot.tasks.tasks import Lift, Reach, Task
from flowpolicy.real_robot.twin.twin import TwinLink

if TYPE_CHECKING:
    from flowpolicy.real_robot.session.trials import Trials  # brings torch, which the robot's host may not have

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
    instruction: str = ""
    """What is to be done, one of the texts of its contract; the only one unless given."""

    def __post_init__(self) -> None:
        for flag, value, usual in (("engine", self.engine, "auto"), ("device", self.device, "cpu")):
            if is_address(self.run) and value != usual:
                raise ConfigError(
                    f"--{flag} {value} with a policy server, which has chosen its {flag}",
                    fix=f"flowpolicy serve --{flag} ...",
                )

    def options(self, seed: int) -> dict[str, Any]:
        """What the policy process is told."""
        run = self.run if is_address(self.run) else str(local_run(Path(self.run)).absolute())
        token_file = str(self.token_file.absolute()) if self.token_file else None
        way = {"engine": self.engine, "device": self.device, "instruction": self.instruction}
        return {"run": run, "seed": seed, "token_file": token_file, **way}

    def told(self, contract: Contract) -> str:
        """What it is going to do; empty for a policy that takes no instruction.

        Args:
            contract: what it was trained for.

        Raises:
            ConfigError: it knows no such instruction, or several and none is given.

        """
        return require_followed(self.instruction, contract.spec)

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
    config = dataclasses.replace(_config(contract), arm=setup.arm, tool=setup.tool_length)
    robot = config.speaking(contract.spec.action)
    lines = check_contract(contract, with_cameras(robot, contract, [one.name for one in parse_cameras(setup.cameras)]))
    convention_of(contract.spec.action, setup.limits)
    warnings = unstated_warnings(contract, robot)
    if is_address(policy.run):  # a server does not tell how it scales actions
        return lines, warnings
    if (contract.spec.action.convention, contract.spec.action.frame) != ("delta", "joints"):
        return lines, warnings  # how fast joints become, only the arm's posture tells
    stored = read_tensors(resolve(Path(policy.run)) / "normalizer.safetensors")
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
    action: str = "joint-delta",
    trials: Trials | None = None,
    others: Sequence[PolicyAt] = (),
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
        action: how the actions of the operator's recordings are written; a policy's are written in its own words.
        trials: which start and whose turn each episode is, and who says whether it succeeded; ``episodes`` then do not
            count.
        others: policies that take turns with ``policy`` in the trials.

    """
    config = ArmTaskConfig(task_name, arm=setup.arm, tool=setup.tool_length, action=action)  # type: ignore[arg-type]
    spec = config.spec()
    contracts = trials.contracts if trials else [policy.contract()] if policy else []
    outcomes: list[EpisodeOutcome] = []
    require_something_to_do(task_name, setup)
    out.mkdir(parents=True, exist_ok=True)
    with start_session(setup) as running, reading_keys(running.session) as keys:
        task, seen = session_task(task_name, running), start_cameras(running)
        if policy is not None and seen:
            for warning in check_cameras(contracts[0], seen, running):
                tell(f"warning: {warning}")
        meta = recording_meta(config, config.env_args(_spoken(config, contracts)), seen, setup)
        if policy is not None and (told := policy.told(contracts[0])):
            meta["instruction"] = told
        if (out / INDEX).exists():  # refused before anything moves
            require_same_robot(out / INDEX, read_env_args(out / INDEX), meta["env_args"], "this session's")
        running.start("recorder_process", {"folder": str(out.absolute()), "meta": meta})
        wait_for_recorder(running)
        if policy is not None:
            running.start("policy_process", {**policy.options(seed), "others": [one.options(seed) for one in others]})
            wait_for_policy(running)
        operator = Operator(running)
        view = session_view(running, seen)

        def watch(tick: Any) -> None:
            view.watch(tick)
            keys.poll(tick)

        first = next_number(out)
        for number in range(first, first + episodes) if trials is None else itertools.count(first):
            rng = numpy_generator(seed, "robot", task_name, number)
            if trials is not None:
                if (trial := trials.next) is None:
                    break
                rng = numpy_generator(seed, "robot", task_name, "trial", trial.index)
                write_turn(running.session.folder, number, trial, trials.noise(trial))
            accepted = _accepted(running)
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
            if trials is not None:
                verdict = trials.judge(number, outcome, _accepted(running) - accepted)
                if verdict is None:
                    tell(f"episode {number} is discarded, and its start played again")
                    continue
                outcome = dataclasses.replace(outcome, success=verdict)
            outcomes.append(outcome)
            won = sum(one.success for one in outcomes)
            tell(f"episode {number}: {outcome.reason} after {outcome.seconds:.1f} s ({won}/{len(outcomes)})")
    return Played(outcomes, session_lines(setup, out, outcomes, view.ticks))


def _accepted(running: RunningSession) -> int:
    """Chunks that the bridge has accepted so far."""
    tick = running.session.ticks.latest()
    return 0 if tick is None else int(tick["chunks"])


def _spoken(config: ArmTaskConfig, contracts: Sequence[Contract]) -> ActionSpec:
    """How the actions of a recording are written: as its policies speak, or as the task says where they differ."""
    said = [config.speaking(contract.spec.action).action for contract in contracts]
    return said[0] if said and said.count(said[0]) == len(said) else config.spec().action


def recording_meta(
    config: ArmTaskConfig, env_args: dict[str, Any], seen: dict[str, ImageSpec], setup: Setup
) -> dict[str, Any]:
    """What the files of a session say of themselves.

    Args:
        config: the task.
        env_args: what they say of it.
        seen: pictures by camera.
        setup: the robot.

    """
    return {
        "env_args": env_args | ({"images": _images(seen)} if seen else {}),
        "keys": list(config.spec().observation),
        "arm": setup.arm,
        "tool": setup.tool_length,
        "rate_hz": env_args["action_spec"]["rate_hz"],
        "cameras": {name: [image.height, image.width] for name, image in seen.items()},
    }


def session_lines(setup: Setup, out: Path, outcomes: list[EpisodeOutcome], ticks: NDArray[Any]) -> list[str]:
    """Successes, service levels, how each camera fared, and where ticks are missing."""
    levels = service_levels(ticks, _RATE)
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


def require_something_to_do(name: str, setup: Setup) -> None:
    """Refuse what the arm in NumPy cannot do: it has no world around it."""
    if name == "lift" and setup.driver == "fake":
        raise ConfigError(
            f"the driver 'fake' has nothing to {name}",
            expected="--driver scene; or --driver franky and the twin: flowpolicy robot twin",
        )


def session_task(name: str, running: RunningSession) -> Task:
    """A built-in task on a running session."""
    if name == "reach":
        return Reach(running.setup.limits)
    arm = getattr(running, "arm", None)  # of a session in this process
    return Lift(running.setup.limits, TwinLink() if arm is None else arm.scene, ServoConfig())


def _images(seen: dict[str, ImageSpec]) -> dict[str, Any]:
    """What a recording says of its pictures, by observation."""
    return {f"{name}{SUFFIX}": image_json(image) for name, image in seen.items()}


def check_cameras(contract: Contract, seen: dict[str, ImageSpec], running: RunningSession) -> list[str]:
    """Warnings where running cameras look swapped; raises :class:`ContractError` where they are not the policy's."""
    require_cameras(contract, seen)
    return swapped_warnings(contract, seen, running.session.folder)


def start_cameras(running: RunningSession) -> dict[str, ImageSpec]:
    """Start a process per camera; what the pictures of each are, once it has taken one."""
    setups = parse_cameras(running.setup.cameras)
    for one, text in zip(setups, running.setup.cameras, strict=True):
        running.start("camera_process", {"camera": text}, f"camera_{one.name}")
    found = {}
    for one in setups:
        path = image_path(running.session.folder, one.name)
        _wait_for(running, path.exists, f"the camera '{one.name}' took no picture within 60 s")
        found[one.name] = stated_camera(running.session.folder, one.name)
    return found


def session_view(running: RunningSession, seen: dict[str, ImageSpec]) -> ConsoleView:
    """What the operator sees of a session whose cameras run; ``seen`` are their pictures by camera."""
    pictures = {f"{name}{SUFFIX}": image for name, image in seen.items()}
    watches = open_watches(running.session.folder, pictures, noisy_cameras(running.setup.cameras))
    return ConsoleView(running.session, watches.values())


def wait_for_recorder(running: RunningSession) -> None:
    """Wait until the recorder listens."""
    _wait_for(running, lambda: running.session.recorder.count > 0, "the recorder did not start within 30 s")


def wait_for_policy(running: RunningSession, seconds: float = 60.0) -> None:
    """Wait until the policy looks at the arm."""
    told = f"the policy did not start within {seconds:g} s"
    _wait_for(running, lambda: running.session.chunks.count > 0, told, seconds)


def _wait_for(running: RunningSession, ready: Any, complaint: str, seconds: float = 60.0) -> None:
    deadline = running.clock.now() + seconds
    while not ready():
        running.require_alive()
        if running.clock.now() > deadline:
            raise ConfigError(complaint, fix="the machine may be overloaded; try again")
        running.clock.sleep(0.02)
