"""The field's own tools read our files and draw our windows.

robomimic requires torchvision and d4rl requires mujoco_py and mjrl, neither of which can be installed beside
our torch and mujoco; so both live, without their dependencies, in a virtual environment of their own.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.windows import WindowSampler

from ..peer_venv import peer_python, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HISTORY, CHUNK = 2, 16
PACKAGES = ("robomimic==0.3.0", "tqdm==4.67.1", "d4rl==1.1", "gym==0.24.1", "gym-notices==0.1.0")

SEQUENCES = """
import sys
import numpy as np
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset
path, out, history, chunk = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["eef", "object"]}})
data = SequenceDataset(
    hdf5_path=path, obs_keys=("eef", "object"), dataset_keys=("actions", "rewards", "dones"),
    frame_stack=history, seq_length=chunk, pad_frame_stack=True, pad_seq_length=True, get_pad_mask=True,
    hdf5_cache_mode="low_dim", hdf5_use_swmr=False, load_next_obs=True, filter_by_attribute=sys.argv[5] or None,
)
items = [data[i] for i in range(len(data))]
np.savez(
    out,
    actions=np.stack([x["actions"] for x in items]),
    valid=np.stack([x["pad_mask"][:, 0] for x in items]),
    rewards=np.stack([x["rewards"] for x in items]),
    eef=np.stack([x["obs"]["eef"] for x in items]),
    object=np.stack([x["obs"]["object"] for x in items]),
    next_eef=np.stack([x["next_obs"]["eef"] for x in items]),
)
"""

EPISODES = """
import sys
import h5py
import numpy as np
import d4rl

class Env:
    _max_episode_steps = 10**6

with h5py.File(sys.argv[1]) as file:
    data = {key: file[key][()] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
episodes = list(d4rl.sequence_dataset(Env(), data))
np.savez(
    sys.argv[2],
    lengths=[len(e["actions"]) for e in episodes],
    actions=np.concatenate([e["actions"] for e in episodes]),
    observations=np.concatenate([e["observations"] for e in episodes]),
)
"""


@pytest.fixture(scope="session")
def peer() -> Path:
    """Python of the environment that holds the peers."""
    return peer_python("robomimic", *PACKAGES)


@pytest.mark.parametrize("filter_key", ["", "okay"])
def test_sequence_dataset_gives_the_windows_of_our_sampler(peer, robomimic_file, tmp_path, filter_key):
    out = tmp_path / "windows.npz"
    run(str(peer), "-c", SEQUENCES, str(robomimic_file), str(out), str(HISTORY), str(CHUNK), filter_key)
    theirs = np.load(out)

    dataset = load_dataset(DataConfig(path=str(robomimic_file), filter_key=filter_key))
    rows = torch.arange(dataset.steps.rows)
    ours = WindowSampler(dataset, HISTORY, CHUNK, 1).at(rows)
    # Theirs begins with the history: the chunk starts at its last entry.
    np.testing.assert_array_equal(theirs["actions"][:, HISTORY - 1 :].astype(np.float32), ours["action"].numpy())
    np.testing.assert_array_equal(theirs["valid"][:, HISTORY - 1 :].astype(bool), ours["valid"].numpy())
    for name in ("eef", "object"):
        np.testing.assert_array_equal(theirs[name][:, :HISTORY].astype(np.float32), ours["obs", name].numpy())
    np.testing.assert_array_equal(theirs["rewards"][:, HISTORY - 1].astype(np.float32), dataset.steps["reward"])
    # The observation after a row is the one before the next row of the same episode.
    going_on = ~dataset.steps["terminal"][:-1].numpy()
    after = theirs["next_eef"][:-1, HISTORY - 1].astype(np.float32)
    np.testing.assert_array_equal(after[going_on], dataset.steps["obs", "eef"][1:].numpy()[going_on])


def test_dataset_info_script(peer, robomimic_file):
    text = run(str(peer), "-m", "robomimic.scripts.get_dataset_info", "--dataset", str(robomimic_file))
    for line in (
        "total transitions: 306",
        "total trajectories: 12",
        "filter key okay with 6 demos",
        '"env_name": "Lift"',
    ):
        assert line in text
    env_args = text.split("==== Env Meta ====")[1].split("==== Dataset Structure ====")[0]
    assert json.loads(env_args) == load_dataset(DataConfig(path=str(robomimic_file))).env_args


def test_d4rl_splits_episodes_as_we_do(peer, d4rl_file, tmp_path):
    out = tmp_path / "episodes.npz"
    quiet = {"D4RL_SUPPRESS_IMPORT_ERROR": "1", "HOME": str(tmp_path)}
    run(str(peer), "-c", EPISODES, str(d4rl_file), str(out), **quiet)
    theirs, ours = np.load(out), load_dataset(DataConfig(path=str(d4rl_file)))
    # d4rl drops a last episode that ends at neither a terminal nor a timeout; we keep it.
    complete = int(theirs["lengths"].sum())
    assert theirs["lengths"].tolist() == ours.lengths.tolist()[:-1]
    np.testing.assert_array_equal(theirs["actions"], ours.steps["action"][:complete])
    np.testing.assert_array_equal(theirs["observations"], ours.steps["obs", "state"][:complete])
