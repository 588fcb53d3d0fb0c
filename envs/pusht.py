"""PushT (Florence et al., "Implicit Behavioral Cloning", 2021; the board of Diffusion Policy): gym-pusht 0.1.

A round pusher slides a T over a board until it covers its outline: the field's small task with contacts and with more
than one way to do it. Physics and pictures are gym-pusht's; initial states are drawn as it draws them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.errors import ConfigError, MissingExtraError, SimulatorError, nearest
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import UNSTATED, ActionSpec, ImageSpec, ObservationSpec, RenderSpec, Spec
from flowpolicy.data.robomimic import read_initial_state
from flowpolicy.envs.action_replay import replay_episodes, require_recorded_in
from flowpolicy.envs.vector import Outcome, SerialVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start

ENV_ID = "gym_pusht/PushT-v0"
VERSION = "0.1"
"""The supported gym-pusht releases."""
BOARD = 512
"""Side of the board, in its pixels."""
COVERED = 0.95
"""Share of the outline from which on it is covered."""
CAMERA = "top"
"""The only camera: all of the board, from above."""

_ACTION: dict[str, Any] = {
    "convention": "absolute",
    "frame": "world",
    "units": "where the pusher is drawn to, pixels of the board of 512 x 512, x to the right and y down",
    "rate_hz": 10.0,
    "low": 0.0,
    "high": float(BOARD),
}
_STATES = {
    "agent_pos": (2, "centre of the pusher, pixels of the board"),
    "environment_state": (16, "gym-pusht's eight key-points of the T, x and y, pixels of the board"),
}


@dataclasses.dataclass(frozen=True)
class PushTConfig:
    """The board, seen as numbers, or also as pictures."""

    horizon: int = 300
    """Steps of 0.1 s after which an episode is cut off."""
    height: int = 0
    """Rows of the pictures of the camera 'top'; 0 for no pictures. The field's are 96 x 96."""
    width: int = 0
    """Columns of them."""

    def __post_init__(self) -> None:
        if not (0 <= self.height <= 4096 and 0 <= self.width <= 4096) or (self.height > 0) != (self.width > 0):
            raise ConfigError(f"pictures of {self.height} x {self.width}", expected="1 to 4096 pixels a side")

    def spec(self) -> Spec:
        """The spec, without importing the simulator."""
        states = {key: ObservationSpec((width,), words) for key, (width, words) in _STATES.items()}
        return Spec(
            observation=states | self.images(),
            action=ActionSpec(2, **_ACTION),
            env_id=ENV_ID,
            env_version=VERSION,
            horizon=self.horizon,
            success=f"the T covers more than {COVERED:.0%} of its outline",
        )

    def images(self) -> dict[str, ImageSpec]:
        """The stream of pictures, by key."""
        if not self.height:
            return {}
        try:
            version = metadata.version("pygame")
        except metadata.PackageNotFoundError:
            version = UNSTATED
        image = ImageSpec(
            (self.height, self.width, 3),
            camera=CAMERA,
            mount="world",
            rate_hz=_ACTION["rate_hz"],
            render=RenderSpec("pygame", version),
        )
        return {f"{CAMERA}_image": image}

    def seeing(self, images: Mapping[str, ImageSpec]) -> PushTConfig:
        """The same board with such pictures.

        Raises:
            ConfigError: there is no camera that takes them.

        """
        for key, image in images.items():
            if key != f"{CAMERA}_image" or image.shape != (image.height, image.width, 3):
                raise ConfigError(
                    f"no camera of PushT takes the pictures '{key}' of shape {image.shape}",
                    expected=nearest(key, [f"{CAMERA}_image"]) + " of (height, width, 3)",
                )
        sizes = [(image.height, image.width) for image in images.values()]
        return dataclasses.replace(self, height=sizes[0][0], width=sizes[0][1]) if sizes else self

    def with_cameras(self, names: Sequence[str], height: int, width: int, renderer: str) -> PushTConfig:
        """The same board with pictures of a size, of its only camera, drawn in the only way that there is."""
        if tuple(names or (CAMERA,)) != (CAMERA,) or renderer != "fast":
            raise ConfigError(
                f"PushT has no cameras {', '.join(names)} that draw '{renderer}'", expected=f"{CAMERA} alone, fast"
            )
        return dataclasses.replace(self, height=height, width=width)

    def env_args(self) -> dict[str, Any]:
        """``env_args`` of a RoboMimic file recorded here; type 2 is its word for a gym environment."""
        return {"env_name": ENV_ID, "env_version": VERSION, "type": 2, "env_kwargs": {}, "action_spec": dict(_ACTION)}

    def make(self, num_envs: int) -> SerialVecEnv:
        """All slots in this process: a step takes less than a message to a worker."""
        return SerialVecEnv(self.spec(), functools.partial(PushTEnv, self), num_envs)

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Success of the first episodes of a file, replayed open-loop from their stored states."""
        require_recorded_in(self.spec(), dataset)
        env = PushTEnv(dataclasses.replace(self, horizon=0))

        def start(row: int) -> PushTEnv:
            env.put(read_initial_state(dataset.path, dataset.names[row])[0])
            return env

        return [one.success for one in replay_episodes(dataset, episodes, start)]


class PushTEnv:
    """One board (:class:`flowpolicy.envs.vector.SingleEnv`). Covering the outline terminates.

    Args:
        config: its horizon, 0 for none, and the size of its pictures.

    """

    def __init__(self, config: PushTConfig) -> None:
        self.config = config
        self.sim_env: Any = import_pusht().PushTEnv(
            observation_height=config.height or 96, observation_width=config.width or 96
        )
        self._steps = 0
        self.reset_from(0)

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        return self.reset_from(derive(0, "plan", "pusht", index))

    def reset_from(self, seed: int) -> dict[str, np.ndarray]:
        """Start the initial state that ``seed`` draws: pusher and T anywhere, the T turned at random."""
        self.sim_env.reset(seed=seed)
        self._steps = 0
        return self.observe()

    def state(self) -> np.ndarray:
        """(10,) positions and velocities: pusher x, y, its velocity, T x, y, angle, its velocities."""
        pusher, block = self.sim_env.agent, self.sim_env.block
        moving = (*block.position, block.angle, *block.velocity, block.angular_velocity)
        return np.array([*pusher.position, *pusher.velocity, *moving])

    def put(self, state: np.ndarray) -> None:
        """Continue from a state (10,)."""
        if np.shape(state) != (10,):
            raise SimulatorError(
                f"a stored state has the shape {np.shape(state)}", expected="(10,)", fix="the file is not of PushT"
            )
        pusher, block, numbers = self.sim_env.agent, self.sim_env.block, [float(number) for number in state]
        # A new space: the old one remembers its contacts.
        self.sim_env.reset(seed=0)
        pusher, block = self.sim_env.agent, self.sim_env.block
        pusher.position, pusher.velocity = tuple(numbers[:2]), tuple(numbers[2:4])
        block.angle = numbers[6]  # before the position, which a turn about the centre of mass moves
        block.position, block.velocity, block.angular_velocity = tuple(numbers[4:6]), tuple(numbers[7:9]), numbers[9]
        for body in (pusher, block):
            self.sim_env.space.reindex_shapes_for_body(body)
        self._steps = 0

    def load(self, model_xml: str, state: np.ndarray) -> dict[str, np.ndarray]:
        """Start from a stored state; there is one model only."""
        self.put(state)
        return self.observe()

    def step(self, action: np.ndarray) -> Outcome:
        """Draw the pusher towards an action (2,), clipped to the board, for a tenth of a second."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), 0.0, BOARD)
        _, reward, covered, _, _ = self.sim_env.step(clipped)
        self._steps += 1
        ended = bool(self.config.horizon and self._steps >= self.config.horizon)
        return Outcome(self.observe(), float(reward), bool(covered), ended, bool(covered))

    def observe(self) -> dict[str, np.ndarray]:
        """Pusher and key-points of the T."""
        corners = self.sim_env.get_keypoints(self.sim_env._block_shapes)
        return {
            "agent_pos": np.array(self.sim_env.agent.position, dtype=np.float32),
            "environment_state": np.asarray(corners, dtype=np.float32).reshape(16),
        }

    def look(self) -> dict[str, np.ndarray]:
        """The board of this moment, as gym-pusht draws its pictures, rows top down."""
        return {f"{CAMERA}_image": np.ascontiguousarray(self.sim_env._render(), dtype=np.uint8)}

    def render(self) -> np.ndarray:
        """(256, 256, 3) uint8 picture for people, with a cross where the pusher is drawn to."""
        return np.asarray(self.sim_env._get_img(self.sim_env._draw(), 256, 256, render_action=True))

    def close(self) -> None:
        """Nothing to free."""


def import_pusht() -> Any:
    """The module of gym-pusht's environment, quietly; checked to be a supported version."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame imports pkg_resources
            from gym_pusht.envs import pusht
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "gym-pusht", "pusht") from error
    if (found := metadata.version("gym-pusht")).split(".")[:2] != VERSION.split("."):
        raise SimulatorError(f"gym-pusht {found} is installed", expected=VERSION, fix="pip install 'flowpolicy[pusht]'")
    return pusht
