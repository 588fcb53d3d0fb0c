"""What every environment owes the VecEnv protocol, and what happens when a worker fails."""

import dataclasses
import functools
import os
import subprocess
import sys
import time
from ctypes.util import find_library

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, SimulatorError
from flowpolicy.envs import ENVS, find_env
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.envs.vector import ProcessVecEnv, SerialVecEnv

ALL = [
    "toy",
    pytest.param("door", marks=pytest.mark.sim),
    pytest.param("lift", marks=pytest.mark.sim),
    pytest.param("can", marks=pytest.mark.sim),
    pytest.param("pointmaze-medium", marks=pytest.mark.sim),
    pytest.param("cube-single", marks=pytest.mark.sim),
    pytest.param("scene", marks=pytest.mark.sim),
    *(pytest.param(name, marks=pytest.mark.sim) for name in ("pen", "hopper", "maze2d-umaze", "d4rl-antmaze-medium")),
]
STEPS = 6


@pytest.fixture(scope="module", params=ALL)
def env(request):
    """Three slots of an environment with a horizon of STEPS; robosuite's in two processes."""
    with dataclasses.replace(ENVS[request.param], horizon=STEPS).make(3) as env:
        yield env


def actions(spec, rows):
    return np.random.default_rng(0).uniform(-1, 1, size=(STEPS, rows, spec.action.size)).astype(np.float32)


def trajectory(env, index, slot, moves):
    """All numbers of one episode, flat."""
    found = [*env.reset([index], [slot]).values()]
    for move in moves:
        step = env.step(move[None], [slot])
        found += [*step.obs.values(), step.reward, step.terminated, step.truncated, step.success]
    return np.concatenate([np.ravel(value).astype(np.float64) for value in found])


def test_an_index_is_the_same_episode_in_every_slot_whatever_the_slot_did_before(env):
    moves = actions(env.spec, 1)[:, 0]
    first = trajectory(env, 3, 0, moves)
    other = trajectory(env, 4, 1, moves[::-1])
    for slot in (1, 0, 2):
        np.testing.assert_array_equal(first, trajectory(env, 3, slot, moves))
    assert not np.array_equal(first, other)


def test_shapes_match_the_spec_and_rows_follow_the_slots_asked_for(env):
    alone = env.reset([11], [2])
    obs = env.reset([10, 11], [1, 0])
    assert list(obs) == list(env.spec.observation)
    for key, value in obs.items():
        assert value.shape == (2, *env.spec.observation[key].shape)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value[1], alone[key][0])
    for count, move in enumerate(0.1 * actions(env.spec, 2), start=1):
        step = env.step(move, [1, 0])
        assert {key: value.shape for key, value in step.obs.items()} == {key: value.shape for key, value in obs.items()}
        assert step.reward.shape == step.terminated.shape == step.success.shape == (2,)
        assert step.truncated.tolist() == [count == STEPS] * 2


def test_a_picture_shows_the_slot_asked_for(env):
    if env.spec.env_id != ENVS["toy"].spec().env_id and find_library("EGL") is None:
        pytest.skip("libEGL is not installed")
    env.reset([3, 4, 3], [0, 1, 2])
    shown, other, same = (env.render(slot) for slot in range(3))
    assert shown.dtype == np.uint8 and shown.ndim == 3 and shown.shape[2] == 3
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) >= 4
    np.testing.assert_array_equal(shown, same)
    assert (shown != other).any()


@pytest.mark.sim
def test_without_opengl_the_error_names_the_packages():
    script = (
        "from flowpolicy.envs.adroit import AdroitEnv\nfrom flowpolicy.core.errors import SimulatorError\n"
        "env = AdroitEnv()\nenv.reset(0)\n"
        "try: env.render()\nexcept SimulatorError as error: print(error)\n"
    )
    without = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**without, "MUJOCO_GL": "glfw"})
    assert "OpenGL cannot be started (MUJOCO_GL=glfw)" in done.stdout
    assert "apt-get install libegl1" in done.stdout


def test_processes_and_serial_agree():
    factory, spec = functools.partial(ToyEnv, 40), ToyConfig().spec()
    serial = SerialVecEnv(spec, factory, 5)
    moves = actions(spec, 5)
    slots, indices = [3, 0, 4, 1, 2], [9, 8, 7, 6, 5]
    with ProcessVecEnv(spec, factory, 5, 2) as env:
        np.testing.assert_array_equal(env.reset(indices, slots)["position"], serial.reset(indices, slots)["position"])
        for move in moves:
            np.testing.assert_array_equal(
                env.step(move, slots).obs["position"], serial.step(move, slots).obs["position"]
            )


def test_an_exception_or_death_in_a_worker_is_an_error_and_the_others_go_on(failing):
    with ProcessVecEnv(ToyConfig().spec(), functools.partial(failing.FailingEnv, 40), 2, 2) as env:
        env.reset([0, 1], [0, 1])
        with pytest.raises(SimulatorError, match="the gears are stripped"):
            env.step(np.array([[7.0, 0.0], [0.1, 0.0]]), [0, 1])
        assert env.step(np.full((2, 2), 0.1), [0, 1]).reward.shape == (2,)
        with pytest.raises(SimulatorError, match=r"died.*exit code -9"):
            env.step(np.array([[8.0, 0.0]]), [0])
        with pytest.raises(SimulatorError, match="died"):
            env.reset([0], [0])
        assert env.reset([5], [1])["position"].shape == (1, 2)


def test_an_environment_that_cannot_be_created_is_an_error():
    with pytest.raises(SimulatorError, match="positional argument"):
        ProcessVecEnv(ToyConfig().spec(), ToyEnv, 1)


def test_workers_end_with_a_killed_parent():
    script = (
        "import functools, os, signal, multiprocessing\n"
        "from flowpolicy.envs.toy import ToyConfig, ToyEnv\n"
        "from flowpolicy.envs.vector import ProcessVecEnv\n"
        "if __name__ == '__main__':\n"
        "    env = ProcessVecEnv(ToyConfig().spec(), functools.partial(ToyEnv, 40), 2, 2)\n"
        "    print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(alive(pid) for pid in workers):
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_names_and_ids_are_found_and_others_get_a_suggestion():
    assert find_env("lift") is find_env("robosuite/Lift") is ENVS["lift"]
    with pytest.raises(ConfigError, match="did you mean 'lift'"):
        find_env("lfit")


def test_the_configs_import_neither_a_simulator_nor_torch():
    """Torch takes seconds and 200 MB of every simulator process, and none computes with it."""
    script = (
        "import sys, flowpolicy.envs.worker; from flowpolicy.envs import ENVS; [c.spec() for c in ENVS.values()]\n"
        "heavy = ('torch', 'mujoco', 'robosuite', 'gymnasium_robotics', 'ogbench')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
