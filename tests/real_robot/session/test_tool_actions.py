"""Policies that speak of the tool, on the twin's scene in simulated time: written, checked, executed."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.commands import robot
from flowpolicy.core.errors import ContractError, DataError
from flowpolicy.core.spec import Contract, read_spec, spec_json
from flowpolicy.data.controllers import action_of
from flowpolicy.data.normalize import Normalizer
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import Direct
from flowpolicy.real_robot.arm.action_conventions import action_named
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.session import play as playing
from flowpolicy.real_robot.session import policy_process
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.session.operate import play_episode

from ..arm.test_action_conventions import OSC

LIFT = dataclasses.replace(ArmTaskConfig("lift", arm="fr3", tool=0.1034).spec(), action=action_of(OSC, 7))
CONTRACT = Contract(LIFT, history=1, chunk=8, execute=2, nfe=1)


class OscServo:
    """Lifts the cube in robosuite's steps: 1 stands for 0.05 m from where the tool is, -1 opens, +1 closes."""

    contract, prefix, continues, evaluations = CONTRACT, 0, False, 0

    def __init__(self):
        self.closed = 0

    def stream(self, seed):
        return None

    def chunk(self, obs, stream, committed=None, previous=None):
        assert obs["robot0_eef_quat"].shape == (1, 4)
        tool, cube = obs["robot0_eef_pos"][-1].astype(float), obs["object"][-1][:3].astype(float)
        beside = np.linalg.norm((cube - tool)[:2])
        self.closed += bool(self.closed or np.linalg.norm(cube - tool) < 0.006)
        goal = cube + np.array([0, 0, np.clip(2.5 * (beside - 0.005), 0.0, 0.1)])
        if self.closed:
            goal = tool + np.array([0, 0, 0.2 if self.closed > 8 else 0.0])
        rows = np.zeros((8, 7))
        for row in rows:
            speed = 3.0 * (goal - tool)
            speed *= min(1.0, 0.12 / max(np.linalg.norm(speed), 1e-9))
            row[:3] = speed * 2.0 / 150.0**0.5 / 0.05  # what keeps a critically damped mass at this speed
            row[6] = 1.0 if self.closed else -1.0
            tool = tool + 0.05 * speed
        return rows


@pytest.fixture
def shm(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    monkeypatch.setattr(policy_process, "load_source", lambda options, note: OscServo())
    monkeypatch.setattr(playing, "served_contract", lambda url, token: CONTRACT)
    return tmp_path


def at(monkeypatch, contract):
    monkeypatch.setattr(playing, "served_contract", lambda url, token: contract)
    return playing.PolicyAt("ws://127.0.0.1:1")


def test_robosuites_actions_are_checked_word_by_word(monkeypatch):
    setup = Setup(driver="scene")
    lines, _ = playing.check_policy(at(monkeypatch, CONTRACT), setup)
    assert any("delta, base: 1 stands for 0.05 m, 0.5 rad per step" in line for line in lines)
    for changes, line in (
        ({"frame": "world"}, "action.frame: 'world' against 'base'"),
        ({"frame": "tool"}, "action.frame: 'tool' against 'base'"),
        ({"convention": "absolute"}, "action.convention: 'absolute' against 'delta'"),
        ({"rotation": "quaternion w x y z"}, "action.rotation"),
        ({"gripper": "last dimension: +1 opens"}, "action.gripper"),
    ):
        wrong = dataclasses.replace(LIFT, action=dataclasses.replace(LIFT.action, **changes))
        with pytest.raises(ContractError) as raised:
            playing.check_policy(at(monkeypatch, dataclasses.replace(CONTRACT, spec=wrong)), setup)
        assert line in raised.value.what
    # What a word leaves unsaid is no agreement here, though it is elsewhere.
    silent = dataclasses.replace(LIFT, action=dataclasses.replace(LIFT.action, frame="unstated"))
    with pytest.raises(ContractError, match="does not understand"):
        playing.check_policy(at(monkeypatch, dataclasses.replace(CONTRACT, spec=silent)), setup)
    # A contract that came back from a file says the same.
    assert read_spec(spec_json(LIFT), "here") == LIFT


@pytest.mark.sim
@pytest.mark.slow
def test_the_cube_is_lifted_in_robosuites_steps(shm, monkeypatch):
    policy = at(monkeypatch, CONTRACT)
    played = playing.play(Setup(driver="scene"), "lift", shm / "out", 1, 0, policy, 5.0, action="osc")
    assert [outcome.reason for outcome in played.outcomes] == ["success"]
    with h5py.File(shm / "out" / "demos.hdf5") as file:
        demo = file["data/demo_0"]
        actions = demo["actions"][()]
        assert actions.shape[1] == 7
        assert np.abs(actions).max() <= 1.0
        assert set(np.unique(actions[:, 6])) == {-1.0, 1.0}
        assert demo["obs/object"][-1, 2] > demo["obs/object"][0, 2] + 0.08


def run_of(folder, action, step):
    """A run whose policy asks for the same ``step`` in every row."""
    spec = dataclasses.replace(LIFT, action=action)
    shapes = {key: one.shape[0] for key, one in spec.observation.items()}
    scaling = Normalizer(shapes, action.size)
    scaling.action_scaling.offset[:] = torch.tensor(step)
    config = PolicyConfig(DM1().net, DM1().encoder, Direct())  # a new network says 0: the middle of its range
    Policy(config, dataclasses.replace(CONTRACT, spec=spec), scaling).save(folder)
    return str(folder)


@pytest.mark.sim
@pytest.mark.parametrize(
    ("action", "step"),
    [
        (LIFT.action, [0.0, 0.05, -0.1, 0.0, 0.0, 0.02, -1.0]),
        (action_named("pose-delta", FR3), [0.0, 0.001, -0.002, 0.0, 0.0, 0.01, 0.08]),
    ],
    ids=["osc", "pose-delta"],
)
def test_robot_run_plays_and_records_a_policy_in_its_own_words(tmp_path, monkeypatch, capsys, action, step):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    monkeypatch.setattr(
        playing, "play_episode", lambda *all_of, **more: play_episode(*all_of, **{**more, "horizon_s": 2.0})
    )
    run, out = run_of(tmp_path / "run", action, step), tmp_path / "out"
    words = ["--driver", "scene", "--engine", "eager", "--out", str(out)]
    assert robot.run(["run", run, *words]) == 0
    assert "success 0/1" in capsys.readouterr().out
    with h5py.File(out / "demos.hdf5") as file:
        stated = action_of(json.loads(file["data"].attrs["env_args"]), len(step))
        demo = file["data/demo_0"]
        assert stated == action
        # Once the arm goes at that pace, it is what was asked for that is written.
        np.testing.assert_allclose(np.median(demo["actions"][10:], axis=0), step, atol=0.05 * max(map(abs, step[:6])))
        way = np.diff(demo["obs/robot0_eef_pos"][10:], axis=0).mean(0)
        assert way[2] < -1e-3 and abs(way[1] / way[2] + 0.5) < 0.1
    # Another convention's numbers would mean other things in one folder; another frame moves nothing at all.
    wrong = run_of(tmp_path / "wrong", dataclasses.replace(action, frame="world"), step)
    with pytest.raises(ContractError, match=f"action.frame: 'world' against '{action.frame}'"):
        robot.run(["run", wrong, *words])
    joints = run_of(tmp_path / "joints", action_named("joint-delta", FR3), [0.0] * 7 + [0.08])
    with pytest.raises(DataError, match="was not recorded with the same robot"):
        robot.run(["run", joints, *words])
