"""robosuite's controller layouts in the words of a contract, and what training makes of them."""

import copy
import json

import h5py
import numpy as np
import pytest

from flowpolicy.cli import main
from flowpolicy.core.errors import DataError
from flowpolicy.core.spec import UNSTATED, load_contract
from flowpolicy.data.controllers import action_of, robot_of
from flowpolicy.data.dataset_checks import describe
from flowpolicy.envs.robosuite import RobosuiteConfig

OURS = RobosuiteConfig("Lift").env_args()
WIDTHS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}


def arm(args):
    return args["env_kwargs"]["controller_configs"]["body_parts"]["right"]


def changed(**words):
    args = copy.deepcopy(OURS)
    arm(args).update(words)
    return args


def nested(args):
    """In the layout of robosuite's own JSON files."""
    args = copy.deepcopy(args)
    parts = args["env_kwargs"]["controller_configs"]["body_parts"]
    parts["arms"] = {"right": parts.pop("right")}
    return args


def old(delta, version="1.4.1", listed=False):
    args = copy.deepcopy(OURS)
    part = {k: v for k, v in arm(args).items() if k not in ("input_type", "input_ref_frame", "gripper")}
    part["control_delta"] = delta
    args["env_kwargs"]["controller_configs"] = [part] if listed else part
    return args | {"env_version": version}


def published():
    """As RoboMimic's v1.5 files have it: the layout of 1.5 with the word of 1.4."""
    args = copy.deepcopy(OURS) | {"env_version": "1.5.1"}
    for word in ("input_type", "input_ref_frame"):
        del arm(args)[word]
    arm(args).update(control_delta=True, damping=1)
    return args


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (OURS, ("delta", "base")),
        (nested(OURS), ("delta", "base")),
        (nested(changed(input_type="absolute")), ("absolute", "base")),
        (changed(input_ref_frame="world"), ("delta", "world")),
        (published(), ("delta", "base")),
        (old(True), ("delta", "world")),
        (old(False, listed=True), ("absolute", "world")),
        (changed(type="JOINT_POSITION"), ("delta", "joints")),
        ({}, (UNSTATED, UNSTATED)),
        ({"env_kwargs": None}, (UNSTATED, UNSTATED)),
    ],
)
def test_every_layout_says_convention_and_frame(args, words):
    spec = action_of(args, 7)
    assert (spec.convention, spec.frame) == words
    assert robot_of(args) == ("Panda" if args.get("env_kwargs") else UNSTATED)


@pytest.mark.parametrize("layout", ["listed", "right and left"])
def test_two_equal_arms_have_one_convention_and_no_gripper_dimension(layout):
    args = copy.deepcopy(OURS)
    if layout == "listed":
        args["env_kwargs"]["controller_configs"] = [args["env_kwargs"]["controller_configs"]] * 2
    else:
        parts = args["env_kwargs"]["controller_configs"]["body_parts"]
        parts["left"] = copy.deepcopy(parts["right"])
    args["env_kwargs"]["robots"] = ["Panda", "Panda"]
    spec = action_of(args, 14)
    assert (spec.convention, spec.frame, spec.gripper) == ("delta", "base", UNSTATED)
    assert spec.units == action_of(OURS, 7).units and robot_of(args) == "Panda, Panda"


def test_what_is_published_means_what_the_simulator_does():
    assert action_of(published(), 7) == action_of(OURS, 7)


@pytest.mark.parametrize(
    ("words", "controller"),
    [
        ({"kp": 30}, "OSC_POSE, stiffness kp 30, damping ratio 1"),
        ({"kp": [150] * 6}, "OSC_POSE, stiffness kp 150, damping ratio 1"),
        ({"kp": [150, 150, 150, 30, 30, 30]}, "OSC_POSE, stiffness kp 150 150 150 30 30 30, damping ratio 1"),
        ({"type": "IK_POSE"}, "IK_POSE, stiffness kp 150, damping ratio 1"),
        ({"impedance_mode": "variable"}, "OSC_POSE, variable impedance"),
    ],
)
def test_kind_and_gains_are_words_too(words, controller):
    assert action_of(changed(**words), 7).controller == controller


@pytest.mark.parametrize(
    "args",
    [
        changed(control_delta=False),  # beside input_type delta
        changed(input_type="mocap"),
        changed(kp="stiff"),
        changed(kp=[[150, 150], [150, 150]]),
        changed(input_min=[]),
        {"env_kwargs": {"controller_configs": "OSC_POSE"}},
        {"env_kwargs": {"controller_configs": {"body_parts": {"right": {}, "base": {"type": "JOINT_VELOCITY"}}}}},
        {"env_kwargs": {"controller_configs": [{"type": "OSC_POSE"}, {"type": "IK_POSE"}]}},
        {"env_kwargs": 3},
    ],
)
def test_what_is_stated_and_not_understood_is_never_taken_for_unstated(args):
    with pytest.raises(DataError):
        action_of(args, 7)


def lift(path, args, size=7, steps=20):
    stream = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(args)
        for index in range(3):
            demo, last = data.create_group(f"demo_{index}"), np.eye(1, steps, steps - 1)[0]
            demo["actions"], demo["rewards"], demo["dones"] = stream.uniform(-1, 1, (steps, size)), last, last
            for key, width in WIDTHS.items():
                demo[f"obs/{key}"] = stream.normal(size=(steps, width))
    return path


def train(path, run, *words):
    small = ("--steps", "1", "--no-compile", "--no-tensorboard", "--agent.net.width", "16", "--agent.net.depth", "1")
    try:
        main(["train", "flow-bc-lift", "--data.path", str(path), *small, "--out", str(run), *words])
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


SILENT = {key: value for key, value in OURS.items() if key != "env_kwargs"}
REFUSED = {
    "absolute": (nested(changed(input_type="absolute")), "action.convention"),
    "another controller": (changed(type="IK_POSE"), "action.controller"),
    "another stiffness": (changed(kp=30), "stiffness kp 30"),
    "another frame": (changed(input_ref_frame="world"), "--data.accept frame"),
    "another robot": ({**OURS, "env_kwargs": {**OURS["env_kwargs"], "robots": ["Sawyer"]}}, "Sawyer"),
    "another version": (OURS | {"env_version": "1.4.1"}, "--data.accept env_version"),
    "nothing stated": (SILENT, "--data.accept unstated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_is_refused_with_its_line(case, tmp_path, capsys):
    args, named = REFUSED[case]
    assert train(lift(tmp_path / "lift.hdf5", args), tmp_path / "run") == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (published(), ()),
        (OURS | {"env_version": "1.4.1"}, ("env_version",)),
        (changed(kp=30, input_ref_frame="world"), ("controller", "frame")),
        (SILENT, ("unstated",)),
    ],
)
def test_what_is_accepted_is_said_and_recorded(args, words, tmp_path, capsys):
    path = lift(tmp_path / "lift.hdf5", args)
    accepting = ("--data.accept", *words) if words else ()
    code, said = train(path, tmp_path / "run", *accepting), capsys.readouterr().err
    assert code == 0 and "accepted although it differs" in said, said
    contract = load_contract(tmp_path / "run" / "checkpoints" / "step_00000001" / "contract.json")
    assert len(contract.accepted) == max(1, len(words))
    assert contract.spec.env_version == "1.5.2"  # of the environment that the policy is for


def test_a_description_shows_what_was_understood(tmp_path):
    facts = describe(lift(tmp_path / "lift.hdf5", nested(changed(input_type="absolute"))))
    assert facts.action.convention == "absolute" and facts.robot == "Panda"


def test_data_of_another_environment_of_the_same_widths_is_doubted(tmp_path, capsys):
    path, stream = tmp_path / "cheetah.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:  # a half-cheetah begins with its torso at 0, a walker at 1.25 m
        file["observations"], file["actions"] = stream.uniform(-0.1, 0.1, (40, 17)), stream.uniform(-1, 1, (40, 6))
        file["rewards"], file["terminals"] = stream.normal(size=40), np.zeros(40, bool)
        file["timeouts"] = np.arange(40) % 20 == 19
    words = ("--env", "walker2d", "--data.obs-keys", "state")
    assert train(path, tmp_path / "run", *words) == 0
    assert "is it of another environment?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["doctor", str(path), "--env", "walker2d"])
    told = " ".join(capsys.readouterr().out.split())
    assert "episodes begin at" in told and "not possible" in told
