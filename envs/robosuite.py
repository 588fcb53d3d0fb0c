"""robosuite 1.5.2 manipulation tasks (Zhu et al., "robosuite", 2020): Panda, OSC pose control, 20 Hz.

The controller configuration below is what the adapter *means* by an action; it is handed to the
simulator, written into generated files as ``env_args``, and read back from them by the same function
(:func:`flowpolicy.data.controllers.action_of`), so that the three cannot disagree.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.errors import ConfigError, MissingExtraError, SimulatorError, nearest
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import ImageSpec, ObservationSpec, Spec
from flowpolicy.data.controllers import action_of, robot_of
from flowpolicy.data.robomimic import read_initial_state, read_stored_state
from flowpolicy.envs.action_replay import replay_episodes, require_recorded_in
from flowpolicy.envs.camera_renderer import FAST, RENDERERS, CameraRenderer, RenderSettings
from flowpolicy.envs.rendering import choose_opengl
from flowpolicy.envs.robosuite_step import CompiledStep, Sensors
from flowpolicy.envs.vector import Outcome, ProcessVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start

VERSION = "1.5.2"
"""The supported robosuite release; another one may compute other trajectories."""

_ARM = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "input_ref_frame": "base",
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}
_KWARGS: dict[str, Any] = {
    "robots": ["Panda"],
    "controller_configs": {"type": "BASIC", "body_parts": {"right": _ARM}},
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "use_object_obs": True,
    "control_freq": 20,
    "reward_shaping": False,
    "reward_scale": 1.0,
    "ignore_done": True,
    "hard_reset": False,
}
_NO_RENDERER = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
"""Pictures are drawn by :mod:`flowpolicy.envs.camera_renderer`, whatever a file asks robosuite to draw."""
_UNITS = {
    "robot0_eef_pos": "position of the gripper site in the world frame, m",
    "robot0_eef_quat": "orientation of the hand in the world frame, quaternion xyzw",
    "robot0_gripper_qpos": "positions of the two fingers, m; +-0.04 is open",
    "object": "object-state of robosuite: position (m) and quaternion xyzw of the object in the world frame "
    "and relative to the gripper, in robosuite's order",
}
_UNITS |= {key.replace("robot0", "robot1"): words for key, words in _UNITS.items() if key.startswith("robot0")}
_TASKS = {
    "Lift": (10, "the cube's centre is more than 0.04 m above the table top"),
    "PickPlaceCan": (14, "the can lies in its bin and the gripper is more than 0.042 m away from it"),
    "NutAssemblySquare": (14, "the square nut is on its peg and the gripper is more than 0.042 m away from it"),
    "ToolHang": (44, "the frame stands in the base and the tool hangs on the frame"),
    "TwoArmTransport": (41, "the payload lies in the target bin and the trash in the trash bin"),
}
"""Task -> numbers of its object-state, and what its success is."""
_TWO_ARMS = ("TwoArmTransport",)
_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
TRANSPORT_KEYS = (*_KEYS[:3], "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos", "object")
"""What both arms of TwoArmTransport observe."""
_CAMERAS = {
    "agentview": ("world", 45.0),
    "frontview": ("world", 45.0),
    "birdview": ("world", 45.0),
    "sideview": ("world", 45.0),
    "robot0_robotview": ("robot0_base", 45.0),
    "robot0_eye_in_hand": ("robot0_right_hand", 75.0),
}
"""Camera -> what it is fixed to, and its vertical field of view in degrees."""
USUAL_CAMERAS = ("agentview", "robot0_eye_in_hand")
"""What pictures are taken with unless somebody names others."""
_NO_CAMERA = {"PickPlaceCan": ("sideview",)}
PICTURE = "_image"
"""What RoboMimic adds to the name of a camera for the key of its pictures."""
_FILM = RenderSettings(msaa=4)  # for people: smooth edges
OWN_STEP = "robosuite's own step"
_MODEL_SEED = 0  # the cube's edge is drawn when the model is built; one model for all slots and indices


@dataclasses.dataclass(frozen=True)
class SceneCamera:
    """A camera of a scene, and the size of its pictures."""

    name: str
    """As the scene calls it, e.g. agentview or robot0_eye_in_hand."""
    height: int = 84
    """Pixels."""
    width: int = 84
    """Pixels."""

    def __post_init__(self) -> None:
        if not (1 <= self.height <= 4096 and 1 <= self.width <= 4096):
            raise ConfigError(f"pictures of {self.height} x {self.width}", expected="1 to 4096 pixels a side")


@dataclasses.dataclass(frozen=True)
class RobosuiteConfig:
    """A robosuite task."""

    task: str = "Lift"
    """Name of the robosuite environment, e.g. Lift, PickPlaceCan or NutAssemblySquare."""
    horizon: int = 300
    """Steps of 50 ms after which an episode is cut off; 300 as in DM1's evaluation (arXiv 2510.07865)."""
    obs_keys: tuple[str, ...] = _KEYS
    """Observation keys, with RoboMimic's names ('object' is robosuite's 'object-state')."""
    cameras: tuple[SceneCamera, ...] = ()
    """Cameras whose pictures are observed too, under their name and '_image', as RoboMimic calls them."""
    render: RenderSettings = FAST
    """How pictures are drawn."""

    def spec(self) -> Spec:
        """The spec, without importing the simulator."""
        if self.task not in _TASKS:
            raise ConfigError(f"unknown robosuite task '{self.task}'", expected=nearest(self.task, _TASKS))
        width, success = _TASKS[self.task]
        arms = self.arms
        parts = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
        shapes = {f"robot{arm}_{part}": size for arm in range(arms) for part, size in parts.items()} | {"object": width}
        for key in self.obs_keys:
            if key not in shapes:
                raise ConfigError(f"unknown observation key '{key}'", expected=nearest(key, shapes))
        states = {key: ObservationSpec((shapes[key],), _UNITS[key]) for key in self.obs_keys}
        return Spec(
            observation=states | self.images(),
            action=action_of(self.env_args(), 7 * arms),
            env_id=f"robosuite/{self.task}",
            env_version=VERSION,
            horizon=self.horizon,
            success=success,
            robot=robot_of(self.env_args()),
        )

    @property
    def arms(self) -> int:
        """How many arms act."""
        return 2 if self.task in _TWO_ARMS else 1

    def images(self) -> dict[str, ImageSpec]:
        """The streams of pictures, by key."""
        known, found = [name for name in _CAMERAS if name not in _NO_CAMERA.get(self.task, ())], {}
        for camera in self.cameras:
            if camera.name not in known:
                raise ConfigError(f"{self.task} has no camera '{camera.name}'", expected=nearest(camera.name, known))
            mount, degrees = _CAMERAS[camera.name]
            found[camera.name + PICTURE] = ImageSpec(
                (camera.height, camera.width, 3),
                camera=camera.name,
                mount=mount,
                fov_deg=degrees,
                rate_hz=float(_KWARGS["control_freq"]),
                render=self.render.spec(),
            )
        return found

    def seeing(self, images: Mapping[str, ImageSpec], render: RenderSettings | None = None) -> RobosuiteConfig:
        """The same task with the cameras that take such pictures.

        Args:
            images: what a policy or a file says of its pictures, by key.
            render: how to draw them; as ``images`` say unless given.

        Raises:
            ConfigError: no camera takes them.

        """
        cameras, settings = [], {RenderSettings.of(image.render) for image in images.values()}
        for key, image in images.items():
            if not key.endswith(PICTURE) or image.shape != (image.height, image.width, 3):
                raise ConfigError(
                    f"no camera of {self.task} takes the pictures '{key}' of shape {image.shape}",
                    expected="keys such as agentview_image, of (height, width, 3)",
                )
            cameras.append(SceneCamera(key.removesuffix(PICTURE), image.height, image.width))
        if len(settings) > 1:
            raise ConfigError(f"pictures drawn in different ways: {settings}", expected="one way for all cameras")
        render = render or (settings.pop() if settings else self.render)
        config = dataclasses.replace(self, cameras=tuple(cameras), render=render)
        config.images()
        return config

    def with_cameras(self, names: Sequence[str], height: int, width: int, renderer: str) -> RobosuiteConfig:
        """The same task with cameras of one size; ``renderer`` is one of the names that the command line has."""
        views = tuple(SceneCamera(name, height, width) for name in names or USUAL_CAMERAS)
        config = dataclasses.replace(self, cameras=views, render=RENDERERS[renderer])
        config.images()
        return config

    def env_args(self) -> dict[str, Any]:
        """``env_args`` of a RoboMimic file recorded in this environment (environment type 1: robosuite)."""
        kwargs = copy.deepcopy(_KWARGS) | {"robots": ["Panda"] * self.arms}
        return {"env_name": self.task, "env_version": VERSION, "type": 1, "env_kwargs": kwargs}

    def make(self, num_envs: int) -> ProcessVecEnv:
        """One worker process per core."""
        return ProcessVecEnv(self.spec(), functools.partial(RobosuiteEnv.create, self), num_envs)

    def redraw(
        self, path: Path, images: Mapping[str, ImageSpec], episode: str, steps: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Steps of an episode as their stored states look, key -> (n, height, width, 3); of cameras that there are."""
        known = {key: image for key, image in images.items() if key.removesuffix(PICTURE) in _CAMERAS}
        if not known:
            return {}
        seeing = self.seeing(known, RenderSettings.of(next(iter(known.values())).render))
        with contextlib.closing(RobosuiteEnv(self.env_args(), (), 0, seeing.cameras, seeing.render)) as env:
            stored = [read_stored_state(path, episode, step) for step in steps]
            env.load(stored[0].model_xml, stored[0].state)
            looked = []
            for one in stored:
                env.put(one.state)
                looked.append(env.look())
        return {key: np.stack([one[key] for one in looked]) for key in known}

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Success of the first episodes of a RoboMimic file, replayed open-loop from their stored states."""
        require_recorded_in(self.spec(), dataset)
        env = RobosuiteEnv(dataset.env_args, ())

        def start(row: int) -> RobosuiteEnv:
            state, xml = read_initial_state(dataset.path, dataset.names[row])
            env.load(xml, state)
            return env

        with contextlib.closing(env):
            return [one.success for one in replay_episodes(dataset, episodes, start)]


class RobosuiteEnv:
    """One robosuite simulation (:class:`flowpolicy.envs.vector.SingleEnv`).

    Success terminates: ``terminated`` is True from the step on which the criterion holds. The simulation
    itself goes on when stepped further. The horizon truncates.

    Args:
        env_args: environment name and keyword arguments, as in a RoboMimic file.
        obs_keys: observations to return.
        horizon: steps until truncation; 0 for none.
        cameras: what :meth:`look` takes pictures with.
        render: how.
        compiled: use the compiled control step where it can be (:mod:`flowpolicy.envs.robosuite_step`).

    """

    simulation: str
    """Which control step the present episode is simulated with: 'compiled', or robosuite's own, and why."""

    def __init__(
        self,
        env_args: Mapping[str, Any],
        obs_keys: tuple[str, ...],
        horizon: int = 0,
        cameras: tuple[SceneCamera, ...] = (),
        render: RenderSettings = FAST,
        *,
        compiled: bool = True,
    ) -> None:
        suite = import_robosuite()
        self.task, self.obs_keys, self.horizon = str(env_args["env_name"]), obs_keys, horizon
        self.cameras, self._settings = cameras, render
        kwargs = {**env_args["env_kwargs"], "seed": _MODEL_SEED, **_NO_RENDERER}
        with _quiet():
            self.sim_env = suite.make(self.task, **kwargs)
        self._sensors = Sensors(self.sim_env, ["object-state" if key == "object" else key for key in obs_keys])
        self._wants_compiled = compiled
        self._steps, self._xml = 0, ""
        self._renderers: dict[RenderSettings, CameraRenderer] = {}
        self._choose_step()

    @classmethod
    def create(cls, config: RobosuiteConfig) -> RobosuiteEnv:
        """The environment of a config."""
        config.spec()
        return cls(config.env_args(), config.obs_keys, config.horizon, config.cameras, config.render)

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        return self.reset_from(derive(0, "plan", "robosuite", self.task, index))

    def reset_from(self, seed: int) -> dict[str, np.ndarray]:
        """Start the initial state that ``seed`` draws: joint noise and object placement."""
        # Robots and placement samplers hold references to this one generator.
        self.sim_env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        with _quiet():
            self.sim_env.reset()
        self._steps = 0
        self._choose_step()
        return self.observe()

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action, (7,) for every arm, clipped to [-1, 1]."""
        clipped = np.minimum(np.maximum(np.asarray(action, dtype=np.float64), -1.0), 1.0)
        if self._compiled is None:
            reward, success = float(self.sim_env.step(clipped)[1]), self.success()
        else:
            reward, success = self._compiled(clipped)
            self._sensors.read()
        self._steps += 1
        ended = bool(self.horizon and self._steps >= self.horizon)
        return Outcome(self._select(), reward, success, ended, success)

    def success(self) -> bool:
        """Whether the task's criterion holds now."""
        return bool(self.sim_env._check_success())

    def reward(self, action: np.ndarray) -> float:
        """The task's reward now, after an action (7,)."""
        return float(self.sim_env.reward(action))

    def state(self) -> np.ndarray:
        """(n,) flat simulator state: time, positions, velocities."""
        return np.array(self.sim_env.sim.get_state().flatten())

    def model_xml(self) -> str:
        """The model, as RoboMimic stores it per episode, with the asset paths from ``robosuite/`` on.

        So the same seed gives the same bytes wherever the package is installed; robosuite finds such paths again.
        """
        site = Path(import_robosuite().__file__).parent.parent
        return str(self.sim_env.sim.model.get_xml()).replace(f'file="{site}/', 'file="')

    def load(self, model_xml: str, state: np.ndarray) -> dict[str, np.ndarray]:
        """Start from a stored model (empty: keep the present one) and simulator state.

        Compiling a model takes longer than many steps: one with the same text as the last is kept.
        """
        with _quiet():
            if model_xml and model_xml != self._xml:
                self.sim_env.reset()
                self.sim_env.reset_from_xml_string(self.sim_env.edit_model_xml(model_xml))
                self._renderers.clear()
                self._xml = model_xml
            else:
                self.reset(0)
            self.sim_env.sim.reset()
        self._steps = 0
        self.put(state)
        for robot in self.sim_env.robots:
            # The posture that the arm is drawn to lies in the controller, which still has that of the reset.
            arm = robot.composite_controller.part_controllers["right"]
            arm.update_initial_joints(self.sim_env.sim.data.qpos[arm.qpos_index])
        self._choose_step()
        return self.observe()

    def put(self, state: np.ndarray) -> None:
        """Set the simulator to a state of the present model, to be looked at; controllers stay where they were."""
        if state.shape != self.state().shape:
            raise SimulatorError(
                f"a stored state has {state.size} numbers, the simulator {self.state().size}",
                fix="the file belongs to another task or model",
            )
        self.sim_env.sim.set_state_from_flattened(state)
        self.sim_env.sim.forward()

    def look(self) -> dict[str, np.ndarray]:
        """Pictures of this moment, (height, width, 3) uint8, rows top down; keys are cameras and '_image'."""
        draw = self._renderer(self._settings).draw
        return {each.name + PICTURE: draw(each.name, each.height, each.width) for each in self.cameras}

    def render(self, height: int = 256, width: int = 256, camera: str = "agentview") -> np.ndarray:
        """(height, width, 3) uint8 picture for people; the first call creates the off-screen renderer."""
        return self._renderer(_FILM).draw(camera, height, width)

    def close(self) -> None:
        """Free the simulator."""
        self.sim_env.close()

    def _renderer(self, settings: RenderSettings) -> CameraRenderer:
        if settings not in self._renderers:
            sim = self.sim_env.sim
            self._renderers[settings] = CameraRenderer(sim.model._model, sim.data._data, settings)
        return self._renderers[settings]

    def observe(self) -> dict[str, np.ndarray]:
        """Observations of this moment, without pictures."""
        self._sensors.begin()
        return self._select()

    def _choose_step(self) -> None:
        self._compiled = None
        if not self._wants_compiled:
            self.simulation = OWN_STEP
            return
        try:
            self._compiled, self.simulation = CompiledStep(self.sim_env), "compiled"
        except SimulatorError as error:
            self.simulation = f"{OWN_STEP}: {error.what}"
            _tell_once(f"robosuite is simulated by its own control step, several times slower: {error}")

    def _select(self) -> dict[str, np.ndarray]:
        return dict(zip(self.obs_keys, self._sensors.values(), strict=True))


def import_robosuite() -> Any:
    """The robosuite package, quietly; checked to be the supported version."""
    choose_opengl()
    try:
        with _quiet():
            import robosuite
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "robosuite", "robosuite") from error
    except ImportError as error:
        raise SimulatorError(
            f"robosuite cannot be imported: {error}",
            fix="apt-get install libgl1 libglib2.0-0 (for its OpenCV), or pip install opencv-python-headless<5",
        ) from error
    if robosuite.__version__ != VERSION:
        raise SimulatorError(
            f"robosuite {robosuite.__version__} is installed",
            expected=VERSION,
            fix="pip install 'flowpolicy[robosuite]'",
        )
    return robosuite


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence robosuite's chatter about optional packages and absent body parts."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@functools.cache
def _tell_once(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=5)
