"""``flowpolicy robot ACTION``: check, home, run, record, demos, pose, leader, replay, salvage, twin, recover, stop."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call, pick, typed
from flowpolicy.core.errors import ConfigError, FlowPolicyError
from flowpolicy.core.ranges import Count, NonNegative, Positive, Seed
from flowpolicy.real_robot.arm.arm_model import ArmAction
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.teaching.devices import DeviceConfig

Robot = Annotated[Setup, tyro.conf.arg(name="")]
"""The fields of a setup as flags without a prefix: ``--driver``, ``--address``, ``--shadow``."""
Teacher = Annotated[DeviceConfig, tyro.conf.arg(name="")]
"""The same of a teaching device."""
DEFAULT, SCRIPTED = Setup(), DeviceConfig()
Format = Literal["robomimic", "lerobot"]


def run(argv: Sequence[str]) -> int:
    """Drive a robot."""
    commands: dict[str, tuple[str, Callable[..., int | None]]] = {
        "check": ("compare a policy's contract with the robot", check),
        "home": ("move to the home pose", home),
        "run": ("let a policy play episodes; --shadow holds the arm still", deploy),
        "record": ("record demonstrations of a person, or of the scripted operator", record),
        "demos": ("list, drop, relabel or show recorded episodes", demos),
        "pose": ("save the arm's present pose, or list the saved ones", pose),
        "leader": ("calibrate a leader arm that this one is to follow", leader),
        "replay": ("play the actions of a recorded episode", replay),
        "salvage": ("finish the recordings of a session that crashed", salvage),
        "twin": ("start the simulated robot that speaks the real protocol", twin),
        "recover": ("clear the fault of a running session, so that its next episode can begin", recover),
        "rearm": ("let a running session go on after a HOLD that waits for the operator", rearm),
        "stop": ("bring the arm of a running session to rest and end it", stop),
    }
    name, rest = pick(argv, commands, "robot", "action")
    return call(commands[name][1], rest, f"robot {name}")


def check(
    run: Annotated[str, tyro.conf.Positional],
    /,
    setup: Robot = DEFAULT,
    connect: bool = True,
    token_file: Path | None = None,
) -> None:
    """Compare rate, frame, action convention, observations, arm, tool, limits and versions of a policy with the robot.

    If its training file is here, the policy is also tried on the file's observations: it should not ask for more than
    the file holds.

    Args:
        run: run or checkpoint folder, or the address of a policy server (ws://host:port).
        setup: the robot.
        connect: also connect to the robot and read its state; nothing moves.
        token_file: file with the server's token; FLOWPOLICY_TOKEN unless given.

    """
    from flowpolicy.real_robot.drivers.priority import real_time_kernel
    from flowpolicy.real_robot.session.launch import start_session
    from flowpolicy.real_robot.session.play import PolicyAt, check_cameras, check_policy, start_cameras
    from flowpolicy.real_robot.session.policy_process import is_address

    policy = PolicyAt(run, token_file)
    lines, warnings = check_policy(policy, setup)
    if not is_address(run):  # a server has no data
        more, told = _outputs(run, setup)
        lines, warnings = lines + more, warnings + told
    sys.stdout.write("\n".join(lines + [f"warning       {line}" for line in warnings]) + "\n")
    if connect:
        with start_session(setup) as running:
            joints = running.first_reading()["q"].round(3).tolist()
            if setup.driver != "scene":  # whose time is simulated
                rights = "; ".join(running.told("host")) or "real-time rights granted"
                kernel = "with" if real_time_kernel() else "without"
                sys.stdout.write(f"host          kernel {kernel} PREEMPT_RT; {rights}\n")
            sys.stdout.write(f"robot         {setup.arm_model.name} by '{setup.driver}', joints {joints} rad\n")
            if seen := start_cameras(running):
                for name, image in seen.items():
                    sys.stdout.write(
                        f"camera        {name}: {image.width} x {image.height}, {image.rate_hz:g} a second\n"
                    )
                found = check_cameras(policy.contract(), seen, running)
                sys.stdout.write("".join(f"warning       {line}\n" for line in found))


def _outputs(run: str, setup: Setup) -> tuple[list[str], list[str]]:
    """What was compared, and warnings, of a run whose training file is here."""
    from flowpolicy.core.errors import CheckpointError, DataError
    from flowpolicy.real_robot.session.outputs import compare_outputs, compare_workspace
    from flowpolicy.train.run import Run

    checked = Run.load(run)
    try:
        dataset = checked.dataset()
    except (CheckpointError, DataError) as error:
        return [], [f"what the policy asks for was not compared with its data: {error.what}"]
    warnings = compare_outputs(checked.policy(), dataset) + compare_workspace(dataset, setup.limits)
    return [] if warnings else ["outputs       on recorded observations within what the data hold"], warnings


def home(setup: Robot = DEFAULT) -> int:
    """Move to the home pose at 0.3 of the joints' speed limits; exits with 1 if a fault ends it.

    Args:
        setup: the robot.

    """
    from flowpolicy.real_robot.bridge.states import State
    from flowpolicy.real_robot.session.launch import start_session

    with start_session(setup) as running:
        state = running.ask("home", State.IDLE, State.FAULT, State.LOCKED, seconds=25.0)
        sys.stdout.write(f"{state.name}{running.last_events(1)}\n")
    return int(state is not State.IDLE)


def deploy(
    run: Annotated[str, tyro.conf.Positional] = "",
    /,
    setup: Robot = DEFAULT,
    episodes: Count = 1,
    seed: Seed = 0,
    out: Path | None = None,
    patience: NonNegative = 60.0,
    token_file: Path | None = None,
    engine: str = "auto",
    device: str = "cpu",
    ask: bool = False,
    blind: tuple[str, str] | None = None,
    films: bool = True,
    json: Path | None = None,
    instruction: str = "",
) -> int:
    """Let a policy play episodes through the bridge, recorded like demonstrations.

    With --ask, --blind or --json it is an evaluation: OUT/trials-SEED.json is a record like that of `flowpolicy eval`,
    which `flowpolicy compare` takes.

    Args:
        run: run or checkpoint folder, or the address of a policy server (ws://host:port).
        setup: the robot.
        episodes: how many; of each policy where two take turns.
        seed: seeds the episodes and the policy's noise.
        out: folder of the recordings; RUN/robot unless given, and ./robot-runs for a policy server.
        patience: seconds that the session waits after a fault for `flowpolicy robot recover`.
        token_file: file with the server's token; FLOWPOLICY_TOKEN unless given.
        engine: what computes a run's decisions: onnx, eager, ...; auto measures those that are ready within seconds.
        device: where they are computed: cpu or a CUDA device; a policy server has a device of its own.
        ask: ask after each episode whether it succeeded; the task's own criterion says so unless given.
        blind: two policies instead of one, which take turns in an order that is drawn and not told: each start is
            played by both.
        films: of an evaluation, films of the recorded pictures in OUT/videos.
        json: another file for the record of one policy.
        instruction: what is to be done, for policies that were trained on several instructions; the only one unless
            given.

    """
    from flowpolicy.real_robot.session.play import PolicyAt, check_policy, play, task_of
    from flowpolicy.real_robot.session.policy_process import is_address

    if bool(run) == bool(blind):
        raise ConfigError(
            "--blind and a RUN before it" if run else "no policy is named",
            expected="flowpolicy robot run RUN, or flowpolicy robot run --blind RUN_A RUN_B",
        )
    runs = blind or (run,)
    policies = [PolicyAt(one, token_file, engine, device, instruction) for one in runs]
    for one in policies:
        _, warnings = check_policy(one, setup)
        sys.stderr.write("".join(f"warning: {line}\n" for line in warnings))
    contracts = [one.contract() for one in policies]
    told = [one.told(contract) for one, contract in zip(policies, contracts, strict=True)]
    if told[0] and not instruction:
        sys.stderr.write(f"instruction '{told[0]}', the only one that {runs[0]} knows\n")
    tasks = {task_of(contract) for contract in contracts}
    if len(tasks) > 1:
        raise ConfigError(f"the two policies were trained for {' and '.join(sorted(tasks))}", expected="one task")
    folder = out or (Path("robot-runs") if blind or is_address(run) else _home(run) / "robot")
    if not ask and not blind and json is None:
        played = play(setup, tasks.pop(), folder, episodes, seed, policies[0], patience, tell=_tell_operator)
        sys.stdout.write("\n".join(played.lines) + "\n")
        return 0 if all(outcome.reason in ("success", "time is up") for outcome in played.outcomes) else 1
    from flowpolicy.core.files import require_free
    from flowpolicy.evaluate.report import save_evaluation
    from flowpolicy.evaluate.tables import percent
    from flowpolicy.real_robot.session.trials import Trials, ask_person, keep_records, keep_videos

    simulation = f"{setup.arm_model.robot} by '{setup.driver}', judged by {'a person' if ask else 'the task'}"
    command = f"flowpolicy robot run {' '.join(sys.argv[3:])}"
    if json is not None:
        if blind:
            raise ConfigError("--json with two policies", fix="leave it out: OUT/trials-SEED-a.json and -b.json")
        require_free(json, overwrite=False)
    if taken := sorted(folder.glob(f"trials-{seed}*.json")):
        raise ConfigError(f"{taken[0]} exists", expected="no record is overwritten", fix="another --seed or --out")

    def keep(known: Trials) -> None:  # after every episode: nothing is lost with the session
        keep_records(known, runs, folder, simulation, command)

    trials = Trials(contracts, episodes, seed, ask_person if ask else None, keep, instruction=told[0])
    tell = _tell_less if blind else _tell_operator
    task, others = tasks.pop(), policies[1:]
    played = play(setup, task, folder, 0, seed, policies[0], patience, tell=tell, trials=trials, others=others)
    sys.stdout.write("\n".join(played.lines[1:]) + "\n")
    for place, (path, record) in enumerate(keep_records(trials, runs, folder, simulation, command)):
        sys.stdout.write(f"success {percent(record.success)} of {len(record.episodes)}: {record.run}, {path}\n")
        if json is not None:
            save_evaluation(json, record)
        for film in keep_videos(trials, place, folder) if films else ():
            sys.stdout.write(f"film {film}\n")
    if blind:
        sys.stdout.write(f"flowpolicy compare {folder}/trials-{seed}-a.json {folder}/trials-{seed}-b.json\n")
    return 0


def _home(run: str) -> Path:
    """The folder named, or that of a copy of a run from elsewhere."""
    from flowpolicy.core.checkpoint import run_of
    from flowpolicy.core.run_places import lies_here, local_run

    return Path(run) if lies_here(run) else run_of(local_run(Path(run)))


def _tell_less(line: str) -> None:
    """Without the tally, which might tell which policy plays."""
    sys.stderr.write(f"{line.partition(' (')[0]}\n")


def _tell_operator(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def record(
    out: Path,
    task: str = "reach",
    setup: Robot = DEFAULT,
    device: Teacher = SCRIPTED,
    episodes: Count = 40,
    seed: Seed = 0,
    patience: NonNegative = 60.0,
    action: ArmAction = "joint-delta",
    instruction: str = "",
    reset: str = "",
    start: str = "",
    scatter: NonNegative | None = None,
    horizon: Positive | None = None,
    success: str = "",
    operator: str = "",
    format: Format = "robomimic",  # noqa: A002
) -> int:
    """Record demonstrations through the bridge, after those that OUT holds; OUT/demos.hdf5 then trains a policy.

    With --teach a person drives (docs/teach.md). Keys: y success, n failure, d discard, space pause, q end.

    Args:
        out: folder of the recordings; one task, one folder.
        task: what is demonstrated: reach or lift, which set themselves up, or any name for a task of your own.
        setup: the robot.
        device: what a person teaches with.
        episodes: how many more.
        seed: seeds what built-in tasks draw.
        patience: seconds that the session waits after a fault for `flowpolicy robot recover`.
        action: how actions are written, and a policy trained on them will speak: steps or places of the joints, poses
            of the tool or steps of it in the base's axes or its own, with rotations as axis-angle unless named; osc is
            robosuite's OSC_POSE, as RoboMimic's files hold it (docs/franka.md).
        instruction: what is to be done, in a sentence; stored with the episodes.
        reset: what the person is told to do before each episode.
        start: name of the pose that episodes begin at (`flowpolicy robot pose save NAME`); home unless given.
        scatter: how far from there each joint may be at the beginning, rad, drawn anew for every episode; 0, and 0.15
            for built-in tasks, unless given. The arm goes there by itself: look whether something is near.
        horizon: seconds of motion after which an episode is over; 30, and 12 for built-in tasks, unless given.
        success: MODULE:FUNCTION that says from an observation whether the task is done; by a key unless given.
        operator: who teaches; stored with the episodes if given.
        format: lerobot writes OUT/lerobot, a LeRobot v3.0 folder, from all episodes too, when the session ends.

    """
    from flowpolicy.real_robot.session.lerobot_copy import require_copying
    from flowpolicy.real_robot.session.play import play
    from flowpolicy.real_robot.session.teach import TaughtLesson, next_lesson, teach

    sheet = next_lesson(out, device.teach, task, instruction, reset, start, horizon, success, scatter)
    if format == "lerobot":  # refused before anything moves
        require_copying(out)
    try:
        if device.teach == "scripted":
            played = play(setup, task, out, episodes, seed, None, patience, tell=_tell_operator, action=action)
        else:
            lesson = TaughtLesson(sheet, device, operator, action)
            played = teach(setup, lesson, out, episodes, seed, patience, tell=_tell_operator)
        sys.stdout.write("\n".join([*played.lines, f"demonstrations {out / 'demos.hdf5'}"]) + "\n")
    finally:  # however the session ended: what was recorded is there
        copied = _copy(out, format)
    return 0 if copied and all(outcome.success for outcome in played.outcomes) else 1


def _copy(folder: Path, format: Format = "robomimic") -> bool:  # noqa: A002
    """Write the LeRobot folder of recordings if it is asked for or stands there; False where that failed."""
    from flowpolicy.real_robot.session.lerobot_copy import COPY, write_lerobot_copy

    if format != "lerobot" and not (folder / COPY).exists():
        return True
    try:
        sys.stdout.write(f"{write_lerobot_copy(folder, typed())}\n")
    except (FlowPolicyError, OSError) as error:
        again = f"flowpolicy robot salvage {folder} --format lerobot"
        sys.stderr.write(f"warning: {folder / COPY} was not written, the recordings are whole; try again: {again}\n")
        sys.stderr.write(f"warning: {error}\n")
        return False
    return True


def demos(
    action: Annotated[Literal["list", "drop", "relabel", "show"], tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    episodes: Annotated[tuple[int, ...], tyro.conf.Positional] = (),
    /,
    label: Literal["", "success", "failure", "unlabelled"] = "",
    out: Path | None = None,
) -> int:
    """List the episodes of a folder, drop some, label them anew, or show one as a film.

    Dropped episodes are moved to FOLDER/dropped. Move them back and run `flowpolicy robot salvage FOLDER` to have them
    again. FOLDER/lerobot, if it is there, is written anew.

    Args:
        action: what to do.
        folder: of the recordings.
        episodes: numbers of the episodes, as `list` shows them.
        label: what `relabel` calls them.
        out: file of the film, NAME.mp4; episode_0003.mp4 beside the episode unless given.

    """
    from flowpolicy.real_robot.session.demos import drop_demos, list_demos, relabel_demos, show_demo

    if action == "list":
        lines = [one for one in list_demos(folder) if not episodes or one.number in episodes]
        won = sum(one.labels.get("label") == "success" for one in lines)
        sys.stdout.write("".join(f"{one.line()}\n" for one in lines) + f"{len(lines)} episodes, {won} successes\n")
    elif action == "drop":
        sys.stdout.write("".join(f"{path}\n" for path in drop_demos(folder, episodes)))
        return not _copy(folder)
    elif action == "relabel":
        relabel_demos(folder, episodes, label)
        sys.stdout.write(f"{len(set(episodes))} episodes are now '{label}'\n")
        return not _copy(folder)
    else:
        if len(episodes) != 1:
            raise ConfigError(f"{len(episodes)} episodes to show", expected="the number of one, as `list` shows it")
        sys.stdout.write(f"{show_demo(folder, episodes[0], out)}\n")
    return 0


def pose(
    action: Annotated[Literal["save", "list", "drop"], tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional] = "",
    /,
    setup: Robot = DEFAULT,
) -> None:
    """Save the joint positions that the arm has now under a name, list the saved ones, or drop one.

    Args:
        action: what to do.
        name: of the pose.
        setup: the robot.

    """
    from flowpolicy.real_robot.tasks.task_sheet import pose_file, save_pose, saved_poses

    if action == "list":
        sys.stdout.write("".join(f"{one}\n" for one in saved_poses(setup.arm)) or "no poses are saved\n")
        return
    path = pose_file(setup.arm, name)
    if action == "drop":
        if not path.exists():
            raise ConfigError(f"no pose '{name}'", expected=", ".join(saved_poses(setup.arm)) or "none are saved")
        path.unlink()
        sys.stdout.write(f"'{name}' is dropped\n")
        return
    from flowpolicy.real_robot.session.launch import start_session

    with start_session(setup) as running:
        q = running.first_reading()["q"]
        sys.stdout.write(f"{save_pose(setup.arm, name, q)}: joints {q.round(3).tolist()} rad\n")


def leader(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    arm: str = "fr3",
    listen: str = DeviceConfig.listen,
    leader_token_file: Path | None = None,
    wait: Positive = 120.0,
) -> None:
    """Calibrate a leader arm: hold it in two poses, and its offsets and signs are written to FILE.

    Args:
        file: where to, for --calibration of `flowpolicy robot record --teach leader`.
        arm: which arm it will lead.
        listen: where the leader is waited for, ADDRESS:PORT.
        leader_token_file: file with what it must show; needed unless it is on this host.
        wait: seconds that each pose is waited for.

    """
    from flowpolicy.core.files import require_writable
    from flowpolicy.real_robot.session.leader_calibration import calibrate_leader

    require_writable(file.parent)
    config = DeviceConfig(listen=listen, leader_token_file=leader_token_file)
    calibration = calibrate_leader(config, arm, wait, _tell_operator)
    calibration.save(file, arm)
    sys.stdout.write(
        f"{file}: signs {list(calibration.signs)}, offsets {[round(o, 3) for o in calibration.offsets]} rad\n"
    )


def replay(file: Annotated[Path, tyro.conf.Positional], /, setup: Robot = DEFAULT, episode: str = "demo_0") -> int:
    """Play the recorded actions of an episode open-loop through the bridge, and say how far the arm came from them.

    Args:
        file: a recording.
        setup: the robot.
        episode: which one.

    """
    from flowpolicy.real_robot.session.replay_episode import replay_episode

    replayed = replay_episode(setup, file, episode)
    told = f"largest distance from the recorded joints {1e3 * replayed.distance:.1f} mrad"
    told += f", of the tool {1e3 * replayed.tool:.1f} mm"
    sys.stdout.write(f"{replayed.reason}; {told}\n")
    return 0 if replayed.complete else 1


def salvage(folder: Annotated[Path, tyro.conf.Positional], /, format: Format = "robomimic") -> int:  # noqa: A002
    """Turn what a crashed session left behind into episode files, and write OUT/demos.hdf5 anew from what is there.

    Args:
        folder: of the recordings.
        format: lerobot writes FOLDER/lerobot too, a LeRobot v3.0 folder; one that is there is written anew unasked.

    """
    from flowpolicy.real_robot.session.episodes import INDEX, told_gaps
    from flowpolicy.real_robot.session.recorder import salvage as finish

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", expected="the folder that `flowpolicy robot record --out` wrote to")

    def warn(text: str) -> None:
        sys.stderr.write(f"warning: {text}\n")

    made = finish(folder, warn)
    sys.stdout.write("".join(f"{path}\n" for path in made) or "nothing was left behind\n")
    for path in made:
        if gaps := told_gaps(path):
            sys.stdout.write(f"{path.name}: {gaps}\n")
    if (folder / INDEX).exists():
        files = len(list(folder.glob("episode_*.hdf5")))
        sys.stdout.write(f"{folder / INDEX} shows the {files} episodes that are there now\n")
    return not _copy(folder, format)


def twin(venv: Path = Path(".venv-twin")) -> int:
    """Serve a simulated FR3 with table, cube and hand on 127.0.0.1 until Ctrl-C; `make twin` builds what it needs.

    Args:
        venv: its environment.

    """
    from flowpolicy.real_robot.twin.twin import start_twin

    # Started in the background a process ignores SIGINT; SIGTERM must not leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with start_twin(venv) as process:
        sys.stdout.write("the twin answers on 127.0.0.1, its control socket on port 13370; Ctrl-C ends it\n")
        sys.stdout.flush()
        return process.wait()


def recover(session: str = "default", wait: NonNegative = 10.0) -> int:
    """Clear the fault of a running session. Look at the arm first: what stopped it must be gone.

    Args:
        session: its name.
        wait: seconds to wait for the outcome.

    """
    return _tell(session, "recover", wait)


def rearm(session: str = "default", wait: NonNegative = 2.0) -> int:
    """Let the policy of a running session go on after a HOLD for clipping, rejections, leash or late ticks.

    Args:
        session: its name.
        wait: seconds to wait for the outcome.

    """
    return _tell(session, "rearm", wait)


def stop(session: str = "default") -> None:
    """Brake a running session to a standstill and end its bridge.

    Args:
        session: its name.

    """
    from flowpolicy.real_robot.bridge.ring_records import SessionRings

    SessionRings(session).command("quit")
    sys.stdout.write(f"told the session '{session}' to stop\n")


def _tell(session: str, command: str, wait: NonNegative) -> int:
    """Say a command to a running bridge and print what comes of it; 1 where it refuses or nothing does."""
    import time

    from flowpolicy.real_robot.bridge.ring_records import SessionRings

    if not 0.0 <= wait < math.inf:
        raise ConfigError(f"--wait {wait:g}", expected="0 s or more, and an end")
    rings = SessionRings(session)
    cursor, deadline = rings.events.count, time.monotonic() + wait
    rings.command(command)
    while time.monotonic() < deadline:
        records, cursor, _ = rings.events.read(cursor)
        for record in records:
            kind, text = bytes(record["kind"]).decode(), bytes(record["text"]).decode()
            if kind == "refused" or (kind == "state" and "-> RECOVERING" not in text):
                sys.stdout.write(f"{text}\n")
                return int(kind == "refused" or "-> LOCKED" in text)
        time.sleep(0.02)
    sys.stdout.write(f"'{command}' changed nothing within {wait:g} s\n")
    return 1
