"""The compiled control step against robosuite's own, from the same states; and when it must not be used."""

import contextlib
import copy
import functools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from flowpolicy.core.errors import SimulatorError
from flowpolicy.envs import robosuite as adapter
from flowpolicy.envs import robosuite_step
from flowpolicy.envs.robosuite import OWN_STEP, RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.robosuite_step import CompiledStep

pytestmark = pytest.mark.sim
KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
OTHERS = ["Stack", "Door", "ToolHang", "NutAssemblyRound", "NutAssembly", "PickPlace", "PickPlaceMilk"]
EPISODES = int(os.environ.get("ROBOSUITE_STEP_EPISODES", 1))
"""Of every task, in which every substep is compared; whoever changes the compiled step takes more."""


def arguments(task, **arm):
    """Of a task, perhaps one that the adapter does not name; ``arm`` changes the arm's controller."""
    found = copy.deepcopy(RobosuiteConfig().env_args() | {"env_name": task})
    found["env_kwargs"]["controller_configs"]["body_parts"]["right"] |= arm
    return found


@pytest.fixture(scope="module")
def pairs():
    """Task -> the same environment twice, stepped by robosuite and compiled."""
    with contextlib.ExitStack() as held:

        @functools.cache
        def pair(task):
            return tuple(
                held.enter_context(contextlib.closing(RobosuiteEnv(arguments(task), KEYS, compiled=compiled)))
                for compiled in (False, True)
            )

        yield pair


def copy_state(source, target):
    """Everything that a step depends on; a step from here is a step from the same state."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    model, data = source.sim_env.sim.model._model, source.sim_env.sim.data._data
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    mujoco.mj_setState(model, target.sim_env.sim.data._data, state, kind)
    target.sim_env._obs_cache = dict(source.sim_env._obs_cache)
    target.sim_env.robots[0].gripper["right"].current_action = source.sim_env.robots[0].gripper["right"].current_action


def touches(env):
    """Whether a finger touches something else than the robot."""
    model, data = env.sim_env.sim.model, env.sim_env.sim.data
    names = [(model.geom_id2name(c.geom1) or "", model.geom_id2name(c.geom2) or "") for c in data.contact[: data.ncon]]
    return any(a.startswith("gripper0") != b.startswith("gripper0") for a, b in names)


def acting(env, rng):
    """Actions that go to the nearest loose thing, press on, open and close, and turn at random."""
    import mujoco

    model, data = env.sim_env.sim.model._model, env.sim_env.sim.data._data
    hand = data.site_xpos[env.sim_env.robots[0].eef_site_id["right"]]
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    loose = data.xpos[model.jnt_bodyid[free]] if len(free) else hand[None]
    way = loose[np.argmin(np.linalg.norm(loose - hand, axis=1))] - [0, 0, 0.02] - hand
    close = rng.choice([-1, 1], p=[0.3, 0.7]) if np.linalg.norm(way) < 0.04 else rng.choice([-1, 0, 1])
    turn = rng.uniform(-0.3, 0.3, 3) * rng.integers(0, 2)
    return np.concatenate([np.clip(way / 0.02, -1, 1) + rng.normal(0, 0.2, 3), turn, [close]])


def equal(a, b, what=""):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=what)


def equal_sight(reference, compiled):
    """What both saw last, before it becomes float32."""
    assert reference.sim_env._obs_cache.keys() == compiled.sim_env._obs_cache.keys()
    for key, value in reference.sim_env._obs_cache.items():
        equal(compiled.sim_env._obs_cache[key], value, key)


def compare_steps(pair, episodes, steps, seed=0):
    """Greatest difference of the state after each of several control steps, each from the same state."""
    rng, differences = np.random.default_rng(seed), []
    reference, compiled = pair
    for index in range(episodes):
        np.testing.assert_equal(reference.reset(index), compiled.reset(index))
        assert (reference.simulation, compiled.simulation) == (OWN_STEP, "compiled")
        for _ in range(steps):
            action = acting(compiled, rng)
            a, b = reference.step(action), compiled.step(action)
            differences.append(np.abs(compiled.state() - reference.state()).max())
            if differences[-1] <= 1e-12:
                equal(a.reward, b.reward)
                assert a[2:] == b[2:]
                equal_sight(reference, compiled)
            copy_state(reference, compiled)
    return np.array(differences)


def compare_substeps(monkeypatch, pair, episodes, steps, seed=0):
    """Every substep from the same state, also in contact; returns in how many steps a finger touches."""
    rng, touched = np.random.default_rng(seed), 0
    reference, compiled = pair
    run = CompiledStep._run
    positions = 1 + reference.sim_env.sim.model.nq

    def substep(policy_step):
        sim, touching = reference.sim_env.sim, touches(reference)
        sim.step1()
        reference.sim_env._pre_action(action, policy_step)
        sim.step2()
        # robosuite's pseudo-inverse loses as many digits as the condition number has.
        arm = reference.sim_env.robots[0].part_controllers["right"]
        condition = np.linalg.cond(arm.J_full @ np.linalg.inv(arm.mass_matrix) @ arm.J_full.T)
        np.testing.assert_allclose(compiled.sim_env.sim.data.ctrl, sim.data.ctrl, rtol=0, atol=1e-13 * condition)
        gap = np.abs(compiled.state() - reference.state()) / max(1, condition / 1e4)
        # A newton metre turns a light thing by 1e5 rad/s^2, and MuJoCo's solver for contacts stops at a tolerance.
        assert gap[:positions].max() <= (1e-10 if touching else 1e-12)
        assert gap.max() <= (1e-7 if touching else 1e-10)
        copy_state(reference, compiled)

    def one_by_one(self, substeps, new=None, turn=None):
        if new is None:  # robosuite's own code did the first substep after a reset
            substep(True)
        for number in range(substeps):
            assert run(self, 1, *((new, turn) if number == 0 else ())) == 1
            substep(new is not None and number == 0)
        return substeps

    monkeypatch.setattr(CompiledStep, "_run", one_by_one)
    for index in range(episodes):
        np.testing.assert_equal(reference.reset(index), compiled.reset(index))
        for _ in range(steps):
            action = acting(compiled, rng)
            found = compiled.step(action)
            reference._sensors.read()
            equal(found.reward, reference.sim_env._post_action(action)[0])
            assert found.success == reference.success()
            equal_sight(reference, compiled)
            touched += touches(compiled)
    return touched


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan", "NutAssemblySquare"])
def test_every_substep_is_robosuites_own_from_the_same_state(pairs, monkeypatch, task):
    assert compare_substeps(monkeypatch, pairs(task), episodes=1, steps=25) >= 2


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan", "NutAssemblySquare"])
def test_a_step_is_robosuites_own_from_the_same_state(pairs, task):
    """In contact a step has no twelve digits: robosuite itself, one last bit away, comes out 1e-8 elsewhere."""
    found = compare_steps(pairs(task), episodes=4, steps=15)
    assert (found <= 1e-12).sum() >= 30
    assert np.median(found) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan", "NutAssemblySquare", *OTHERS])
def test_many_steps_are_robosuites_own(pairs, monkeypatch, task):
    assert np.median(compare_steps(pairs(task), episodes=4, steps=20, seed=1)) < 1e-11
    compare_substeps(monkeypatch, pairs(task), episodes=EPISODES, steps=40, seed=2)


def test_observations_are_as_fresh_as_robosuites_own(pairs):
    """Those of robosuite's reset and step, of an environment that nobody touches."""
    import robosuite

    found = arguments("Lift")
    plain = robosuite.make("Lift", **found["env_kwargs"], seed=0)
    for env in pairs("Lift"):
        seen = [env.reset_from(7)]
        plain.rng.bit_generator.state = np.random.default_rng(7).bit_generator.state
        theirs = [plain.reset()]
        for _ in range(3):
            action = np.array([0.3, -0.2, -0.5, 0.1, 0.2, -0.1, 1.0])
            seen.append(env.step(action).obs)
            theirs.append(plain.step(action)[0])
        for ours, own in zip(seen, theirs, strict=True):
            for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"):
                own_value = own["object-state" if key == "object" else key].astype(np.float32)
                kept = slice(None, 7) if own is theirs[0] and key == "object" else slice(None)  # theirs are zeros yet
                np.testing.assert_allclose(ours[key][kept], own_value[kept], rtol=0, atol=1e-7, err_msg=key)
    plain.close()


def test_a_hand_that_cannot_move_in_some_direction_is_left_to_robosuite(pairs, monkeypatch):
    reference, compiled = pairs("Lift")
    for env in (reference, compiled):
        env.reset(0)
        env.step(np.zeros(7))
        data, arm = env.sim_env.sim.data, env.sim_env.robots[0].part_controllers["right"]
        data.qpos[arm.qpos_index], data.qvel[:] = [0.0, 0.0, 0.0, 0.0, 0.0, np.pi, 0.0], 0.0  # stretched upwards
        env.sim_env.sim.forward()
    own, substeps = CompiledStep._substep, []
    monkeypatch.setattr(CompiledStep, "_substep", lambda *at: (substeps.append(at), own(*at)))
    action = np.array([0.2, 0.1, -0.5, 0.0, 0.0, 0.1, 1.0])
    a, b = reference.step(action), compiled.step(action)
    assert substeps
    assert np.isfinite(compiled.state()).all() and a[1:] == b[1:]
    np.testing.assert_allclose(compiled.state(), reference.state(), rtol=0, atol=1e-6)


def test_a_simulation_that_robosuite_replaced_is_not_stepped(pairs, monkeypatch):
    reference, compiled = pairs("Lift")
    compiled.reset(0)
    monkeypatch.setattr(compiled.sim_env, "sim", reference.sim_env.sim)
    with pytest.raises(SimulatorError, match="robosuite made a new simulation"):
        compiled.step(np.zeros(7))


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (
            {"interpolation": "linear"},
            "interpolator_pos of the arm's controller is a LinearInterpolator instead of None",
        ),
        ({"input_type": "absolute"}, "input_type of the arm's controller is 'absolute' instead of 'delta'"),
        ({"uncouple_pos_ori": False}, "uncoupling"),
        ({"impedance_mode": "variable_kp"}, "impedance_mode"),
    ],
)
def test_another_controller_runs_by_robosuites_own_step_and_is_told_once(arm, says):
    adapter._tell_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=says) as told:
        env = RobosuiteEnv(arguments("Lift", **arm), KEYS)
    with contextlib.closing(env), warnings.catch_warnings():
        assert len(told) == 1
        warnings.simplefilter("error", RuntimeWarning)
        env.reset(0)
        assert env.simulation.startswith(f"{OWN_STEP}: ") and says in env.simulation
        assert env.step(np.zeros(env.sim_env.action_dim)).obs["object"].shape == (10,)


@pytest.fixture
def nothing_built(tmp_path, monkeypatch, pairs):
    """An empty cache folder, and nothing loaded."""
    pairs("Lift")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    robosuite_step._library.cache_clear()
    yield tmp_path / "cache" / "flowpolicy" / "compiled"
    robosuite_step._library.cache_clear()


def test_without_a_compiler_robosuites_own_step_runs(nothing_built, monkeypatch, pairs):
    _, env = pairs("Lift")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    adapter._tell_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no C compiler is installed"):
        env.reset(0)
    assert env.simulation == f"{OWN_STEP}: no C compiler is installed"
    assert np.isfinite(env.step(np.zeros(7)).reward)
    assert not nothing_built.exists()


def test_a_compiler_that_fails_and_a_folder_that_cannot_be_written_are_told(nothing_built, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(SimulatorError, match="cannot compile"):
        robosuite_step._library()
    assert not list(nothing_built.glob("*.so"))
    monkeypatch.delenv("CC")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SimulatorError, match="cannot be written or loaded"):
        robosuite_step._library()


def test_processes_that_need_the_library_at_once_build_it_once(nothing_built):
    code = "from flowpolicy.envs.robosuite_step import _library; _library(); print('loaded')"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [one.communicate(timeout=120)[0] for one in started] == ["loaded\n"] * 3
    built = list(nothing_built.glob("*.so"))
    assert [path.name for path in built] == [next(nothing_built.glob("robosuite_step-*.so")).name]
    made = built[0].stat().st_mtime_ns
    robosuite_step._library()
    assert built[0].stat().st_mtime_ns == made
