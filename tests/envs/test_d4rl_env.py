"""D4RL's suites: reference returns against d4rl's own table, frames, reward shift, timing."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.data.catalogue import PUBLISHED
from flowpolicy.envs import ENVS, normalized_score
from flowpolicy.envs.d4rl_env import SUITE, D4RLConfig, D4RLEnv

DATASETS = {
    **{name: f"{name}-medium-v2" for name in ("hopper", "halfcheetah", "walker2d")},
    **{f"maze2d-{size}": f"maze2d-{size}-v1" for size in ("umaze", "medium", "large")},
    **{name: f"{name}-human-v1" for name in ("pen", "door", "hammer", "relocate")},
    "kitchen": "kitchen-partial-v0",
    "kitchen-mixed": "kitchen-mixed-v0",
}
ANTMAZE = {
    "d4rl-antmaze-umaze": "antmaze-umaze-v2",
    "d4rl-antmaze-medium": "antmaze-medium-play-v2",
    "d4rl-antmaze-large": "antmaze-large-play-v2",
}


@pytest.fixture(scope="session")
def infos(tmp_path_factory):
    """``d4rl/infos.py`` of the published package, which needs none of its dependencies."""
    folder = tmp_path_factory.mktemp("d4rl")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "d4rl==1.1", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"d4rl cannot be downloaded: {done.stderr}")
        pytest.skip("d4rl cannot be downloaded")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extract("d4rl/infos.py", folder)
    spec = importlib.util.spec_from_file_location("infos", folder / "d4rl" / "infos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_returns_are_those_of_d4rl(infos):
    for name, dataset in DATASETS.items():
        score = normalized_score(ENVS[name].spec().env_id)
        assert score(infos.REF_MIN_SCORE[dataset]) == pytest.approx(0, abs=1e-9), name
        assert score(infos.REF_MAX_SCORE[dataset]) == pytest.approx(100), name
    for name, dataset in ANTMAZE.items():
        assert SUITE[name].reference == (infos.REF_MIN_SCORE[dataset], infos.REF_MAX_SCORE[dataset])


def test_the_catalogue_points_where_d4rl_does(infos):
    ours = {name: entry.url for name, entry in PUBLISHED.items() if "offline_rl" in entry.url}
    assert ours == {name: infos.DATASET_URLS[name] for name in ours}


def test_the_score_of_antmaze_is_its_success():
    assert normalized_score(ENVS["d4rl-antmaze-umaze"].spec().env_id) is None
    with pytest.raises(ConfigError, match="100 times its rate of success"):
        D4RLConfig("d4rl-antmaze-umaze").normalized_score(-100.0)
    assert ENVS["d4rl-antmaze-umaze"].spec().reward_shift == -1.0
    with pytest.raises(ConfigError, match="did you mean 'hopper'"):
        D4RLConfig("hoper")


@pytest.mark.sim
@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("maze2d-umaze", (1, 1)),
        ("maze2d-medium", (6, 6)),
        ("maze2d-large", (7, 9)),
        ("d4rl-antmaze-umaze", (0, 8)),
        ("d4rl-antmaze-medium", (20, 20)),
        ("d4rl-antmaze-large", (32, 24)),
    ],
)
def test_goals_stand_where_d4rl_has_them(name, goal, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = D4RLEnv(D4RLConfig(name))
    assert not list(tmp_path.iterdir())  # the simulator writes its model there
    noise = 1.0 if "antmaze" in name else 0.1
    for index in range(3):
        state = env.reset(index)["state"]
        np.testing.assert_allclose(env.goal(), goal, atol=noise)
        if "antmaze" in name:
            np.testing.assert_allclose(state[:2], 0, atol=noise)


@pytest.mark.sim
def test_maze2d_pushes_along_d4rls_axes_and_pays_at_the_goal():
    env = D4RLEnv(D4RLConfig("maze2d-umaze"))
    env.reset(0)
    env.sim_env.data.qpos[:] = np.array([3.0, 2.0]) + env._origin  # the corridor of row 3
    before = env._observe(env.sim_env._get_obs(env.sim_env.point_env._get_obs()[0]))["state"]
    for _ in range(10):
        along = env.step(np.array([0.0, 1.0]))
    assert along.obs["state"][1] > before[1] + 0.01 and abs(along.obs["state"][0] - before[0]) < 1e-3
    assert (along.reward, along.terminated, along.success) == (0.0, False, False)
    env.sim_env.data.qpos[:] = env.sim_env.goal
    there = env.step(np.zeros(2))
    assert (there.reward, there.terminated, there.success) == (1.0, False, True)


@pytest.mark.sim
def test_antmaze_costs_one_per_step_and_ends_at_the_goal():
    env = D4RLEnv(D4RLConfig("d4rl-antmaze-umaze"))
    env.reset(0)
    assert env.step(np.zeros(8))[1:] == (-1.0, False, False, False)
    env.sim_env.data.qpos[:2] = env.sim_env.goal
    assert env.step(np.zeros(8))[1:] == (0.0, True, False, True)


@pytest.mark.sim
@pytest.mark.parametrize("name", ["pen", "hammer", "relocate", "kitchen-mixed", "walker2d", "halfcheetah"])
def test_sizes_are_those_of_the_simulator(name):
    with ENVS[name].make(1) as env:
        assert env.reset([0], [0])["state"].shape == (1, *env.spec.observation["state"].shape)
        step = env.step(np.zeros((1, env.spec.action.size)), [0])
        assert np.isfinite(step.reward).all() and not step.success.any()
