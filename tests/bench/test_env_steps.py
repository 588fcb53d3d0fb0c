import contextlib

import numpy as np
import pytest

from flowpolicy.bench.env_steps import _Course
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv

pytestmark = pytest.mark.sim


def test_bare_physics_goes_the_path_of_the_steps_that_it_is_compared_with():
    with contextlib.closing(RobosuiteEnv.create(RobosuiteConfig())) as env:
        course = _Course(env, steps=3)
        ends = []
        for _ in range(2):
            course.time_steps(env)
            course.time_physics()
            ends += [env.sim_env.sim.data.qpos.copy(), course._bare.qpos.copy()]
        assert env.simulation == "compiled"
    for end in ends[1:]:
        np.testing.assert_array_equal(end, ends[0])
