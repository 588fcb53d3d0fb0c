"""robosuite's control step, compiled: the same numbers as robosuite's own Python, several times faster.

robosuite computes its control law in Python before each of the 25 substeps of a control step.
:class:`CompiledStep` hands them to one loop in C (``robosuite_step.c``) and asks robosuite for the reward;
:class:`Sensors` asks it for observations. robosuite stays the reference (``tests/envs/test_robosuite_step.py`` compares
them from the same states), and is what runs where the configuration is another than that which was translated.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import SimulatorError
from flowpolicy.envs.mujoco_extension import load_extension

_JOINTS, _FINGERS = 7, 4  # as in the C file


class _Arm(ctypes.Structure):
    _fields_ = (
        ("site", ctypes.c_int),
        ("base", ctypes.c_int),
        ("joints", ctypes.c_int),
        ("fingers", ctypes.c_int),
        ("position", ctypes.c_int * _JOINTS),
        ("velocity", ctypes.c_int * _JOINTS),
        ("actuator", ctypes.c_int * _JOINTS),
        ("finger", ctypes.c_int * _FINGERS),
        ("rest", ctypes.c_double * _JOINTS),
        ("kp", ctypes.c_double * 6),
        ("kd", ctypes.c_double * 6),
        ("least", ctypes.c_double * 3),
        ("most", ctypes.c_double * 3),
        ("centre", ctypes.c_double * 3),
        ("scale", ctypes.c_double * 3),
        ("offset", ctypes.c_double * 3),
        ("goal_position", ctypes.c_double * 3),
        ("goal_rotation", ctypes.c_double * 9),
        ("speed", ctypes.c_double),
        ("command", ctypes.c_double * _FINGERS),
        ("middle", ctypes.c_double * _FINGERS),
        ("half", ctypes.c_double * _FINGERS),
    )


class CompiledStep:
    """Steps one robosuite environment; bound to the simulation and the controllers that a reset left behind.

    What robosuite keeps for programs that look at it between steps stays right: time, goals, the gripper's command. Its
    buffers of recent forces and velocities are not filled.

    Args:
        sim_env: the robosuite environment, after its reset.

    Raises:
        SimulatorError: its configuration is another than that which was translated, or nothing can be compiled here.

    """

    def __init__(self, sim_env: Any) -> None:
        from robosuite.utils import transform_utils

        differs = difference(sim_env)
        if differs:
            raise SimulatorError(differs)
        self._library = _library()
        self._step = self._library.flowpolicy_robosuite_step
        self._rotation = transform_utils.quat2mat
        self._env, robot, sim = sim_env, sim_env.robots[0], sim_env.sim
        self._arm, self._grip = robot.part_controllers["right"], robot.part_controllers["right_gripper"]
        self._gripper = robot.gripper["right"]
        numbers = self._numbers = _Arm(
            site=sim.model.site_name2id(self._arm.ref_name),
            base=_base(sim_env),
            joints=len(self._arm.qpos_index),
            fingers=len(self._grip.actuator_index),
            speed=self._gripper.speed,
        )
        actuators = robot._ref_actuators_indexes_dict
        self._write("position", self._arm.qpos_index)
        self._write("velocity", self._arm.qvel_index)
        self._write("actuator", actuators["right"])
        self._write("finger", actuators["right_gripper"])
        self._write("kp", self._arm.kp)
        self._write("kd", self._arm.kd)
        low, high = self._grip.actuator_min, self._grip.actuator_max
        self._write("middle", 0.5 * (high + low))
        self._write("half", 0.5 * (high - low))
        scaling = _scaling(self._arm)
        for name, values in zip(("least", "most", "centre", "scale", "offset"), scaling, strict=True):
            self._write(name, values[:3])
        self._turning = [value[3:].tolist() for value in scaling]
        self._rest = np.ctypeslib.as_array(numbers.rest)[: numbers.joints]
        self._command = np.ctypeslib.as_array(numbers.command)[: numbers.fingers]
        self._goal_position = np.ctypeslib.as_array(numbers.goal_position)
        self._goal_rotation = np.ctypeslib.as_array(numbers.goal_rotation).reshape(3, 3)
        model, data = sim.model._model, sim.data._data
        self._action, self._turn, self._scratch = np.empty(7), np.empty((3, 3)), np.empty(model.nv * (6 + model.nv))
        self._substeps = int(sim_env.control_timestep / sim_env.model_timestep)
        self._simulation = model._address, data._address, ctypes.addressof(numbers)
        self._new_goal = self._action.ctypes.data, self._turn.ctypes.data
        self._room = self._scratch.ctypes.data

    def __call__(self, action: np.ndarray) -> tuple[float, bool]:
        """Apply one action (7,) float64 for a control step; returns the reward and whether the task's criterion holds.

        Raises:
            SimulatorError: MuJoCo failed.

        """
        env, arm = self._env, self._arm
        env.timestep += 1
        self._rest[:], self._command[:] = arm.initial_joint, self._gripper.current_action
        left = self._substeps
        if arm.new_update:
            self._action[:] = action
            self._turn[:] = self._rotation(_quaternion(action[3:6].tolist(), *self._turning))
            left -= self._run(left, *self._new_goal)
        else:
            # After a reset robosuite's controllers work with what they saw when they were made.
            env.sim.step1()
            self._substep(action, True)
            self._goal_position[:], self._goal_rotation[:] = arm.goal_pos, arm.goal_ori
            self._command[:] = self._gripper.current_action
            left -= 1 + self._run(left - 1)
        while left:  # a posture in which the hand cannot be moved in some direction
            self._tell()
            self._substep(action, False)
            left -= 1 + self._run(left - 1)
        self._tell()
        arm.new_update = self._grip.new_update = True
        env.cur_time += env.control_timestep
        return self._judged(action)

    def _run(self, substeps: int, action: int | None = None, turn: int | None = None) -> int:
        if not substeps:
            return 0
        done = self._step(*self._simulation, action, turn, substeps, self._room)
        if done < 0:
            raise SimulatorError(f"MuJoCo: {self._library.flowpolicy_error().decode(errors='replace')}")
        return int(done)

    def _tell(self) -> None:
        """Give robosuite's objects the goals that are pursued."""
        self._arm.goal_pos, self._arm.goal_ori = self._goal_position, self._goal_rotation
        self._gripper.current_action = self._grip.goal_qvel = self._command

    def _substep(self, action: np.ndarray, policy_step: bool) -> None:
        """The rest of a substep after mj_step1, by robosuite."""
        self._env._pre_action(action, policy_step)
        self._env.sim.step2()

    def _judged(self, action: np.ndarray) -> tuple[float, bool]:
        env = self._env
        success = env._check_success()
        env._check_success = lambda: success  # rewards ask for it again, and in some tasks it takes as long as the rest
        try:
            reward = env._post_action(action)[0]
        finally:
            del env._check_success
        return float(reward), bool(success)

    def _write(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        field = getattr(self._numbers, name)
        field[: len(values)] = list(values)


def _scaling(controller: Any) -> tuple[np.ndarray, ...]:
    """Least and greatest action, centre, scale and offset, as robosuite's ``scale_action`` computes them."""
    least, most = controller.input_min, controller.input_max
    scale = abs(controller.output_max - controller.output_min) / abs(most - least)
    return least, most, (most + least) / 2.0, scale, (controller.output_max + controller.output_min) / 2.0


def _quaternion(
    turn: list[float],
    least: list[float],
    most: list[float],
    centre: list[float],
    scale: list[float],
    offset: list[float],
) -> np.ndarray:
    """(4,) xyzw of the rotation that an action asks for: robosuite's ``axisangle2quat`` of the scaled action."""
    x, y, z = ((min(max(turn[i], least[i]), most[i]) - centre[i]) * scale[i] + offset[i] for i in range(3))
    angle = math.sqrt(x * x + y * y + z * z)
    if angle == 0.0:
        return np.array((0.0, 0.0, 0.0, 1.0))
    part = math.sin(angle / 2.0)
    return np.array((x / angle * part, y / angle * part, z / angle * part, math.cos(angle / 2.0)))


class Sensors:
    """Reads the observables that an observation is made of, without moving robosuite's counters.

    robosuite samples its observables after the last substep of every control step, which counters find out anew in each
    substep. An update asked for at another time moves them, and every later observation is older.

    Args:
        sim_env: the robosuite environment; observables of the robot that nothing here needs are switched off in it.
        keys: of robosuite's observables; 'object-state' is those of the objects, one after another.

    """

    def __init__(self, sim_env: Any, keys: Sequence[str]) -> None:
        self._env, self._keys = sim_env, tuple(keys)
        robot = sim_env.robots[0].robot_model.naming_prefix
        needed = {*keys, f"{robot}eef_pos", f"{robot}eef_quat"}  # what poses relative to the hand are made from
        for name, observable in sim_env._observables.items():
            if name.startswith(robot) and name not in needed:
                observable.set_enabled(False)
                observable.set_active(False)

    def begin(self) -> None:
        """Look at what a reset, or a state that was set, left behind."""
        observables = self._env._observables.values()
        self._read = [one for one in observables if one.is_enabled()]
        self._parts = [
            [one for one in self._read if one.is_active() and key in (one.name, f"{one.modality}-state")]
            for key in self._keys
        ]
        self.read()
        self.read()  # poses relative to the hand are made from the poses of the reading before

    def read(self) -> None:
        """Read every sensor once, now."""
        cache = self._env._obs_cache
        for one in self._read:
            value = np.array(one._filter(one._corrupter(one._sensor(cache))))
            one._current_observed_value = cache[one.name] = value[0] if value.shape == (1,) else value

    def values(self) -> list[np.ndarray]:
        """(n,) float32 of each key, what was read last by this or by robosuite."""
        return [np.concatenate([np.atleast_1d(one.obs) for one in part]).astype(np.float32) for part in self._parts]


def difference(sim_env: Any) -> str:
    """What differs from the configuration that the C code was translated for, in words; empty where nothing does."""
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.environments.base import MujocoEnv
    from robosuite.environments.robot_env import RobotEnv
    from robosuite.models.grippers.panda_gripper import PandaGripper
    from robosuite.robots.fixed_base_robot import FixedBaseRobot
    from robosuite.utils.observables import NO_DELAY

    kind, robot = type(sim_env), sim_env.robots[0]
    parts: Any = getattr(robot, "part_controllers", {})
    arm, grip = parts.get("right"), parts.get("right_gripper")
    own = (MujocoEnv.step, MujocoEnv._post_action, RobotEnv._pre_action)
    if len(sim_env.robots) != 1 or type(robot) is not FixedBaseRobot or list(robot.arms) != ["right"]:
        return "there is more than one arm, or its base moves"
    if (kind.step, kind._post_action, kind._pre_action) != own:
        return f"{kind.__name__} has a control step of its own"
    if type(robot.composite_controller) is not CompositeController or set(parts) != {"right", "right_gripper"}:
        return "the controller is not BASIC with an arm and a gripper"
    if type(arm) is not OperationalSpaceController or type(grip) is not SimpleGripController:
        return "the arm's controller is not OSC_POSE, or the gripper's not GRIP"
    said = {
        "use_ori": True,
        "input_type": "delta",
        "input_ref_frame": "base",
        "impedance_mode": "fixed",
        "uncoupling": True,
        "interpolator_pos": None,
        "interpolator_ori": None,
        "position_limits": None,
        "orientation_limits": None,
        "num_ref_sites": 1,
        "lite_physics": True,
        "_goal_update_mode": "achieved",
    }
    for name, value in said.items():
        if getattr(arm, name) != value:
            return f"{name} of the arm's controller is {getattr(arm, name)!r} instead of {value!r}"
    sampled = all(
        one._delayer is NO_DELAY and one._sampling_timestep == sim_env.control_timestep
        for one in sim_env._observables.values()
    )
    rules = {
        "the gripper's controller interpolates": grip.interpolator is None,
        "a part of the robot is switched off": all(robot.enabled(name) for name in parts),
        "physics are not lite": sim_env.lite_physics,
        "episodes end in robosuite": sim_env.ignore_done,
        "robosuite renders": sim_env.viewer is None and not sim_env.has_renderer,
        "the gripper is not the Panda's": type(robot.gripper["right"]) is PandaGripper and grip.use_action_scaling,
        "the gripper's commands are scaled": all(
            np.all(np.abs(limit) == 1) for limit in (grip.input_min, grip.input_max, grip.output_min, grip.output_max)
        ),
        "observables have delays or rates of their own": sampled,
        "there are too many joints": len(arm.qpos_index) <= _JOINTS and len(grip.actuator_index) <= _FINGERS,
        "the base of the arm moves": _base(sim_env) is not None,
    }
    return next((what for what, holds in rules.items() if not holds), "")


def _base(sim_env: Any) -> int | None:
    """Number of the site that goals are relative to; None where the body that it is on moves."""
    arm, model = sim_env.robots[0].part_controllers["right"], sim_env.sim.model
    site = model.site_name2id(f"{arm.naming_prefix}{arm.part_name}_center")
    return None if model._model.body_weldid[model._model.site_bodyid[site]] else site


@functools.cache
def _library() -> Any:
    """The C function; found out once, also that there is none."""
    library = load_extension(Path(__file__).with_name("robosuite_step.c"))
    step = library.flowpolicy_robosuite_step
    pointer = ctypes.c_void_p
    step.argtypes = [pointer, pointer, pointer, pointer, pointer, ctypes.c_int, pointer]
    library.flowpolicy_error.restype = ctypes.c_char_p
    return library
