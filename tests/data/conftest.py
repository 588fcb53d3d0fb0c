"""Small dataset files, written with the writer under test or with h5py alone."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter

ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_version": "1.5.2",
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {
            "type": "BASIC",
            "body_parts": {
                "right": {
                    "type": "OSC_POSE",
                    "input_type": "delta",
                    "input_ref_frame": "base",
                    "input_max": 1,
                    "input_min": -1,
                    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
                }
            },
        },
    },
}


def make_episodes(count: int = 12, seed: int = 0) -> list[RecordedEpisode]:
    """Episodes of 20, 21, ... steps; the odd ones succeed in their last step."""
    random = np.random.default_rng(seed)
    episodes = []
    for index in range(count):
        steps = 20 + index
        dones, rewards = np.zeros(steps, dtype=np.int64), np.zeros(steps)
        dones[-1], rewards[-1] = 1, index % 2
        path = {"eef": random.normal(size=(steps + 1, 3)), "object": random.normal(size=(steps + 1, 5))}
        episodes.append(
            RecordedEpisode(
                actions=random.uniform(-1, 1, (steps, 7)),
                rewards=rewards,
                dones=dones,
                obs={name: value[:-1] for name, value in path.items()},
                next_obs={name: value[1:] for name, value in path.items()},
                states=random.normal(size=(steps, 9)),
                model_xml="<mujoco/>" * 20_000,
            )
        )
    return episodes


def write_robomimic(path: Path, episodes: list[RecordedEpisode]) -> Path:
    with RobomimicWriter(path, ENV_ARGS) as writer:
        for index, episode in enumerate(episodes):
            writer.add(episode, filters=("train", "okay") if index % 2 else ("train",))
    return path


@pytest.fixture
def episodes() -> list[RecordedEpisode]:
    return make_episodes()


@pytest.fixture
def robomimic_file(tmp_path: Path, episodes: list[RecordedEpisode]) -> Path:
    return write_robomimic(tmp_path / "demos.hdf5", episodes)


@pytest.fixture
def d4rl_file(tmp_path: Path) -> Path:
    """Ten steps: a terminal after row 3, a timeout after row 6, and a rest that ends at neither."""
    path = tmp_path / "d4rl.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(30, dtype=np.float32).reshape(10, 3)
        file["actions"] = np.linspace(-1, 1, 20, dtype=np.float32).reshape(10, 2)
        file["rewards"] = np.arange(10, dtype=np.float32)
        file["terminals"] = np.arange(10) == 3
        file["timeouts"] = np.arange(10) == 6
        file["infos/qpos"] = np.arange(40, dtype=np.float64).reshape(10, 4)
    return path
