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
import operator
from collections.abc import Callable, Sequence
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
        self._env, robot = sim_env, sim_env.robots[0]
        self._sim = sim = sim_env.sim
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
        self._action, self._turn = np.empty(7), np.empty((3, 3))
        self._succeeded = _criterion(sim_env)
        self._substeps = int(sim_env.control_timestep / sim_env.model_timestep)
        self._simulation = model._address, data._address, ctypes.addressof(numbers)
        self._new_goal = self._action.ctypes.data, self._turn.ctypes.data

    def __call__(self, action: np.ndarray) -> tuple[float, bool]:
        """Apply one action (7,) float64 for a control step; returns the reward and whether the task's criterion holds.

        Raises:
            SimulatorError: MuJoCo failed, or robosuite has replaced the simulation since this was made.

        """
        env, arm = self._env, self._arm
        if env.sim is not self._sim:
            raise SimulatorError(
                "robosuite made a new simulation", fix="start episodes by reset and load of the adapter"
            )
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
        done = self._step(*self._simulation, action, turn, substeps)
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
        success = self._succeeded()
        env._check_success = lambda: success  # rewards ask for it again
        try:
            reward = env._post_action(action)[0]
        finally:
            del env._check_success
        return float(reward), success

    def _write(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        field = getattr(self._numbers, name)
        field[: len(values)] = list(values)


def run_physics(model: Any, data: Any, controls: np.ndarray) -> None:
    """Simulate as many substeps as there are ``controls`` (substeps, nu) float64 contiguous, and nothing else."""
    _library().flowpolicy_physics(model._address, data._address, controls.ctypes.data, len(controls))


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
        enabled = [one for one in self._env._observables.values() if one.is_enabled()]
        self._read = [(one, one.name, _reader(one)) for one in enabled]
        self._parts = [
            [one for one in enabled if one.is_active() and key in (one.name, f"{one.modality}-state")]
            for key in self._keys
        ]
        self.read()
        self.read()  # poses relative to the hand are made from the poses of the reading before

    def read(self) -> None:
        """Read every sensor once, now."""
        cache = self._env._obs_cache
        for one, name, reader in self._read:
            value = reader(cache)
            one._current_observed_value = cache[name] = value[0] if value.shape == (1,) else value

    def values(self) -> list[np.ndarray]:
        """(n,) float32 of each key, what was read last by this or by robosuite."""
        return [
            np.concatenate([value if value.ndim else value[None] for value in map(_CURRENT, part)]).astype(np.float32)
            for part in self._parts
        ]


_CURRENT = operator.attrgetter("_current_observed_value")


def _reader(observable: Any) -> Callable[[dict[str, Any]], np.ndarray]:
    """What reads an observable anew, given what was read before it."""
    from robosuite.utils.observables import NO_CORRUPTION, NO_FILTER

    sensor, filtered, corrupted = observable._sensor, observable._filter, observable._corrupter
    if filtered is not NO_FILTER or corrupted is not NO_CORRUPTION:
        return lambda cache: np.array(filtered(corrupted(sensor(cache))))
    if not sensor.__closure__:
        return lambda cache: np.array(sensor(cache))
    seen = {
        name: cell.cell_contents for name, cell in zip(sensor.__code__.co_freevars, sensor.__closure__, strict=True)
    }
    copied = _copied(sensor, seen)
    if copied is not None:
        numbers, order = copied
        return (lambda cache: numbers.copy()) if order is None else (lambda cache: numbers.take(order))
    match sensor.__qualname__:
        case "ManipulationEnv._get_world_pose_in_gripper_sensor.<locals>.fn":
            return _world_in_hand(f"{seen['prefix']}eef_pos", f"{seen['prefix']}eef_quat")
        case "ManipulationEnv._get_rel_obj_eef_sensor.<locals>.fn":
            thing = seen["obj_key"]
            hand, turned = f"world_pose_in_{seen['prefix']}gripper", f"{thing}_to_{seen['new_key_prefix']}eef_quat"
            return _in_hand(f"{thing}_pos", f"{thing}_quat", hand, turned)
    return lambda cache: np.array(sensor(cache))


def _world_in_hand(position: str, quaternion: str) -> Callable[[dict[str, Any]], np.ndarray]:
    """Reads the pose of the world seen from the hand (4, 4), as robosuite computes it, in single precision in part."""
    from robosuite.utils.transform_utils import quat2mat

    place, inverse = np.empty(3, dtype=np.float32), np.eye(4)

    def read(cache: dict[str, Any]) -> np.ndarray:
        place[:] = cache[position]
        turn = inverse[:3, :3] = quat2mat(cache[quaternion]).astype(np.float32).T
        inverse[:3, 3] = -turn.astype(np.float64).dot(place)
        return inverse.copy()

    return read


def _in_hand(position: str, quaternion: str, hand: str, turned: str) -> Callable[[dict[str, Any]], np.ndarray]:
    """Reads the position of a thing (3,) seen from the hand, and leaves its quaternion where the next sensor looks.

    The thing is where the reading before saw it: its own sensors come later. Zeros after a reset, as in robosuite.
    """
    from robosuite.utils.transform_utils import mat2quat, quat2mat

    pose = np.eye(4)

    def read(cache: dict[str, Any]) -> np.ndarray:
        if position not in cache:
            return np.zeros(3)
        pose[:3, :3] = quat2mat(cache[quaternion]).astype(np.float32)
        pose[:3, 3] = cache[position].astype(np.float32)
        seen = cache[hand].dot(pose)
        cache[turned] = mat2quat(seen[:3, :3])
        return seen[:3, 3].copy()

    return read


def _copied(sensor: Any, seen: dict[str, Any]) -> tuple[np.ndarray, list[int] | None] | None:
    """The numbers in MuJoCo's memory that one of robosuite's sensors copies, and their order; None for the others."""
    owner: Any = seen.get("self")
    data: Any = owner.sim.data._data if owner else None
    xyzw = [1, 2, 3, 0]
    match sensor.__qualname__.split(".<locals>."):
        case ["Robot._create_arm_sensors", "eef_pos"]:
            return data.site_xpos[owner.eef_site_id[seen["arm"]]], None
        case ["Robot._create_arm_sensors", "eef_quat"]:
            return data.xquat[owner.sim.model.body_name2id(owner.robot_model.eef_name[seen["arm"]])], xyzw
        case ["Robot._create_arm_sensors", "gripper_qpos"]:
            return data.qpos, list(owner._ref_gripper_joint_pos_indexes[seen["arm"]])
        case ["Lift._setup_observables", "cube_pos"]:
            return data.xpos[owner.cube_body_id], None
        case ["Lift._setup_observables", "cube_quat"]:
            return data.xquat[owner.cube_body_id], xyzw
        case ["PickPlace._create_obj_sensors", "obj_pos"] | ["NutAssembly._create_nut_sensors", "nut_pos"]:
            return data.xpos[owner.obj_body_id[seen.get("obj_name") or seen["nut_name"]]], None
        case ["PickPlace._create_obj_sensors", "obj_quat"] | ["NutAssembly._create_nut_sensors", "nut_quat"]:
            return data.xquat[owner.obj_body_id[seen.get("obj_name") or seen["nut_name"]]], xyzw
    return None


def _criterion(sim_env: Any) -> Callable[[], bool]:
    """What robosuite's ``_check_success`` computes and marks, asking only about things that are near their places."""
    from robosuite.environments.manipulation.nut_assembly import NutAssembly
    from robosuite.environments.manipulation.pick_place import PickPlace

    check, data = type(sim_env)._check_success, sim_env.sim.data._data
    if check is PickPlace._check_success:
        things, marks, belongs = sim_env.objects, sim_env.objects_in_bins, lambda *at: not sim_env.not_in_bin(*at)
        centres, reach = [sim_env.bin2_pos] * len(things), sim_env.bin_size[:2] / 2  # all bins together
    elif check is NutAssembly._check_success:
        things, marks, belongs = sim_env.nuts, sim_env.objects_on_pegs, sim_env.on_peg
        centres, reach = [data.xpos[sim_env.peg1_body_id], data.xpos[sim_env.peg2_body_id]], (0.03, 0.03)
    else:
        return lambda: bool(sim_env._check_success())
    hand = data.site_xpos[sim_env.robots[0].eef_site_id["right"]]
    places = [data.xpos[sim_env.obj_body_id[thing.name]] for thing in things]
    enough, (wide, long) = 1 if sim_env.single_object_mode else len(things), (float(half) + 1e-3 for half in reach)

    def placed() -> bool:
        for number, (place, centre) in enumerate(zip(places, centres, strict=True)):
            there = abs(place[0] - centre[0]) < wide and abs(place[1] - centre[1]) < long and belongs(place, number)
            marks[number] = there and 1 - np.tanh(10.0 * np.linalg.norm(hand - place)) < 0.6
        return sum(marks) >= enough

    return placed


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
        found = getattr(arm, name)
        if found != value:
            said_of_it = repr(found) if isinstance(found, str | int) else f"a {type(found).__name__}"
            return f"{name} of the arm's controller is {said_of_it} instead of {value!r}"
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
        "the arm is no chain of hinges on a fixed base": _base(sim_env) is not None and _is_chain(sim_env),
    }
    return next((what for what, holds in rules.items() if not holds), "")


def _base(sim_env: Any) -> int | None:
    """Number of the site that goals are relative to; None where the body that it is on moves."""
    arm, model = sim_env.robots[0].part_controllers["right"], sim_env.sim.model
    site = model.site_name2id(f"{arm.naming_prefix}{arm.part_name}_center")
    return None if model._model.body_weldid[model._model.site_bodyid[site]] else site


def _is_chain(sim_env: Any) -> bool:
    """Whether every joint of the arm hangs on the one before, and the hand on the last."""
    arm, model = sim_env.robots[0].part_controllers["right"], sim_env.sim.model
    joints, parents = list(arm.qvel_index), model._model.dof_parentid
    body = model._model.site_bodyid[model.site_name2id(arm.ref_name)]
    while not model._model.body_dofnum[body]:
        body = model._model.body_parentid[body]
    last = model._model.body_dofadr[body] + model._model.body_dofnum[body] - 1
    return [-1, *joints[:-1]] == parents[joints].tolist() and last == joints[-1]


@functools.cache
def _library() -> Any:
    """The C function; found out once, also that there is none."""
    library = load_extension(Path(__file__).with_name("robosuite_step.c"))
    step = library.flowpolicy_robosuite_step
    pointer = ctypes.c_void_p
    step.argtypes = [pointer, pointer, pointer, pointer, pointer, ctypes.c_int]
    library.flowpolicy_physics.argtypes = [pointer, pointer, pointer, ctypes.c_int]
    library.flowpolicy_physics.restype = None
    library.flowpolicy_error.restype = ctypes.c_char_p
    return library
