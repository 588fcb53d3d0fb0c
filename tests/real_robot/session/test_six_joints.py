"""An arm with six joints through the whole robot side, in simulated time: home, demonstrations, a policy, refusals."""

import contextlib
import json
import types

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, ContractError, DataError
from flowpolicy.core.spec import Contract
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.arm.models.ur5e import UR5E
from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.fake import FakeArm
from flowpolicy.real_robot.session import play as playing
from flowpolicy.real_robot.session.accelerated import accelerated_session
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.session.play import PolicyAt, check_policy
from flowpolicy.real_robot.session.policy_process import PolicyLoop

from ..simulated import StillGripper

SETUP = Setup(arm="ur5e")


def numpy_body(clock):
    return FakeArm(UR5E, clock), StillGripper(UR5E)


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    """Sessions are played by the arm in NumPy, in simulated time."""
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))

    @contextlib.contextmanager
    def started(setup):
        with accelerated_session(setup, numpy_body) as running:
            yield running

    monkeypatch.setattr(playing, "start_session", started)
    return tmp_path


def test_six_joints_home_within_their_limits(simulated):
    away = np.array(UR5E.home) + 0.3
    with accelerated_session(SETUP, lambda clock: (FakeArm(UR5E, clock, away), StillGripper(UR5E))) as running:
        assert running.ask("home", State.IDLE, State.FAULT, seconds=20.0) is State.IDLE
        np.testing.assert_allclose(running.arm.q, UR5E.home, atol=0.005)
        ticks, _, _ = running.session.ticks.read(0)
        path = ticks["q_cmd"][ticks["state"] == State.HOMING]
        assert path.shape[1] == 6
        assert np.abs(np.diff(path, axis=0)).max() * 250.0 <= 0.3 * np.pi + 1e-6
        assert np.abs(np.diff(path, n=2, axis=0)).max() * 250.0**2 <= UR5E.acceleration[0] + 1e-6
        # Whoever joins the session reads there which arm it is.
        assert SessionRings(running.session.name).arm is UR5E


def test_six_joints_are_recorded_trained_on_and_played_by_their_policy(simulated, make_policy):
    outcomes = playing.play(SETUP, "reach", simulated / "demos", 2, 0, None, 5.0).outcomes
    assert [outcome.reason for outcome in outcomes] == ["success", "success"]
    with h5py.File(simulated / "demos" / "demos.hdf5") as file:
        stated, demo = json.loads(file["data"].attrs["env_args"]), file["data/demo_0"]
        assert (stated["env_name"], stated["robot"]) == ("ur5e/Reach", "Universal Robots UR5e")
        assert demo["actions"].shape[1] == 7
        q, tool = demo["obs/robot0_joint_pos"][()], demo["obs/robot0_eef_pos"][()]
        assert q.shape[1] == 6
        np.testing.assert_allclose(UR5E.chain.forward(q.astype(float), UR5E.hand.length).position, tool, atol=1e-5)
        assert np.linalg.norm(tool[-1] - demo["obs/goal"][-1]) < 0.02
    dataset = load_dataset(DataConfig(str(simulated / "demos" / "demos.hdf5")))
    assert not dataset.spec.differences(ArmTaskConfig(arm="ur5e", tool=UR5E.hand.length).spec())
    run = make_policy(dataset.spec, simulated / "run")
    lines, _ = check_policy(PolicyAt(run), SETUP)
    assert any("Universal Robots UR5e" in line for line in lines)
    (outcome,) = playing.play(SETUP, "reach", simulated / "out", 1, 0, PolicyAt(run), 5.0).outcomes
    assert outcome.reason == "time is up"  # it was not trained
    with h5py.File(simulated / "out" / "episode_0001.hdf5") as file:
        assert len(file["data/demo_0/decisions"]) > 100
    with pytest.raises(DataError, match=r"robot: Universal Robots UR5e against Franka FR3"):
        playing.play(Setup(), "reach", simulated / "demos", 1, 0, None, 5.0)


def test_a_policy_of_another_arm_is_refused(simulated, make_policy):
    run = make_policy(ArmTaskConfig(tool=FR3.hand.length).spec(), simulated / "run")
    with pytest.raises(ContractError, match=r"robot: 'Franka FR3' against 'Universal Robots UR5e'"):
        check_policy(PolicyAt(run), SETUP)
    # And where nobody compared, by the loop itself.
    contract = Contract(ArmTaskConfig().spec(), history=1, chunk=8, execute=2, nfe=1)
    session = SessionRings("other", create=UR5E)
    with pytest.raises(ContractError, match="actions of 8 numbers for an arm with 6 joints"):
        PolicyLoop(types.SimpleNamespace(contract=contract), session, UR5E.hand.length, "latest")


def test_an_arm_that_no_driver_can_drive_is_refused():
    for driver in ("franky", "scene"):
        with pytest.raises(ConfigError, match="cannot drive the arm 'ur5e'"):
            Setup(arm="ur5e", driver=driver)


@pytest.fixture
def make_policy():
    """Saves an untrained policy of a spec; returns its folder."""
    import torch

    from flowpolicy.agents.cloning.dm1 import DM1
    from flowpolicy.data.normalize import Normalizer
    from flowpolicy.policy.actor import PolicyConfig
    from flowpolicy.policy.policy import Policy
    from flowpolicy.policy.samplers import Direct

    def make(spec, folder):
        torch.manual_seed(0)
        contract = Contract(spec, history=1, chunk=8, execute=2, nfe=1)
        shapes = {key: one.shape[0] for key, one in spec.observation.items()}
        Policy(PolicyConfig(DM1().net, DM1().encoder, Direct()), contract, Normalizer(shapes, spec.action.size)).save(
            folder
        )
        return str(folder)

    return make
