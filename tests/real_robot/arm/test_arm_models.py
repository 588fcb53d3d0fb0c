"""Every arm that is known is consistent in itself, and a wrong one is refused."""

import dataclasses

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.envs import find_env
from flowpolicy.real_robot.arm.arm_model import Gains
from flowpolicy.real_robot.arm.braking import Motion
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models import ARMS, find_arm
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.arm.models.ur5e import UR5E
from flowpolicy.real_robot.tasks.tasks import solve

each = pytest.mark.parametrize("arm", ARMS.values(), ids=list(ARMS))


@each
def test_an_arm_may_start_at_home_and_at_every_corner_of_its_goals(arm):
    limits = policy_limits(arm, table=0.0, tool=arm.hand.length)
    envelope, still = Envelope(limits, 0.004), np.zeros(arm.joints)
    home = np.array(arm.home)
    assert envelope.admissible(Motion(home, still, still))
    np.testing.assert_allclose(arm.chain.forward(home).rotation[:, 2], [0.0, 0.0, -1.0], atol=1e-9)
    for corner in np.stack(np.meshgrid(*zip(*arm.goals, strict=True)), -1).reshape(-1, 3):
        q = solve(corner, limits)
        np.testing.assert_allclose(arm.chain.forward(q, limits.tool).position, corner, atol=1e-4)
        assert envelope.admissible(Motion(q, still, still))


@each
def test_a_task_of_an_arm_speaks_of_its_joints(arm):
    for task in arm.tasks:
        spec = find_env(f"{arm.family}-{task}").spec()
        assert spec.action.size == arm.joints + 1
        assert spec.observation["robot0_joint_pos"].shape == (arm.joints,)
        assert find_env(spec.env_id).spec() == spec


def test_a_model_with_a_number_too_few_or_more_than_the_data_sheet_allows_is_refused():
    with pytest.raises(ConfigError, match="has 6 joints, but own home: 5 values"):
        dataclasses.replace(UR5E, home=UR5E.home[:5])
    with pytest.raises(ConfigError, match="has 6 joints, but gains: 7 values"):
        dataclasses.replace(UR5E, gains=FR3.gains)
    with pytest.raises(ConfigError, match="outside its joints' range"):
        dataclasses.replace(UR5E, home=(7.0, *UR5E.home[1:]))
    with pytest.raises(ConfigError, match="more velocity than its data sheet"):
        dataclasses.replace(UR5E, velocity=(4.0,) * 6)
    with pytest.raises(ConfigError, match="a value per joint"):
        Gains((600.0,) * 6, (50.0,) * 5)
    with pytest.raises(ConfigError, match="unknown arm 'ur5'"):
        find_arm("ur5")
