"""Pictures of stored states: the file's layout, resuming, and files that cannot be drawn."""

import contextlib
import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, DataError, FlowPolicyError
from flowpolicy.core.spec import read_image
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs import ENVS, rendered_data
from flowpolicy.envs.camera_renderer import AS_ROBOSUITE
from flowpolicy.envs.rendered_data import read_source, render_file
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv, SceneCamera

from .test_demonstrators import content

CAMERAS = (SceneCamera("agentview", 24, 32), SceneCamera("robot0_eye_in_hand", 16, 16))
CONFIG = RobosuiteConfig(cameras=CAMERAS)
KEYS = {"obs/agentview_image", "obs/robot0_eye_in_hand_image"}


@pytest.fixture(scope="module")
def rendered(lift_file, tmp_path_factory):
    """The three Lift episodes with pictures, drawn by one worker, and the counts that were reported."""
    path, counts = tmp_path_factory.mktemp("rendered") / "pictures.hdf5", []
    render_file(lift_file[0], path, CONFIG, workers=1, progress=counts.append)
    return path, counts


@pytest.mark.sim
def test_the_file_gains_pictures_and_loses_nothing(lift_file, rendered):
    before, after = content(lift_file[0]), content(rendered[0])
    gained = {name for name in after if name not in before}
    assert gained == {f"data/demo_{i}/{key}" for i in range(3) for key in KEYS} | {"data@rendered_from_sha256"}
    assert {name for name in before if before[name] != after[name]} == {"data@env_args"}
    with h5py.File(rendered[0]) as file:
        node = file["data/demo_1/obs/agentview_image"]
        assert node.dtype == np.uint8 and node.shape == (len(file["data/demo_1/actions"]), 24, 32, 3)
        assert node.chunks == (1, 24, 32, 3)
        env_args = json.loads(file["data"].attrs["env_args"])
    assert env_args["env_kwargs"]["camera_names"] == ["agentview", "robot0_eye_in_hand"]
    images = {key: read_image(value, key) for key, value in env_args["images"].items()}
    assert images == CONFIG.images()
    assert rendered[1][0] == 0 and rendered[1][-1] == read_source(rendered[0]).steps
    assert not list(rendered[0].parent.glob(".*"))
    dataset = load_dataset(DataConfig(path=str(rendered[0]), obs_keys=("object",)))
    assert ENVS["lift"].replay(dataset, 1) == [True]  # what RoboMimic's tools are told to draw is not drawn here


@pytest.mark.sim
def test_a_picture_is_what_the_environment_shows_in_that_state(lift_file, rendered):
    env = RobosuiteEnv.create(CONFIG)
    with h5py.File(rendered[0]) as file, contextlib.closing(env):
        demo = file["data/demo_2"]
        env.load(demo.attrs["model_file"], demo["states"][7])
        for key, picture in env.look().items():
            assert np.array_equal(demo[f"obs/{key}"][7], picture)
        env.put(demo["states"][8])
        assert not np.array_equal(demo["obs/agentview_image"][7], env.look()["agentview_image"])


@pytest.mark.sim
def test_stopped_it_goes_on_and_two_workers_draw_what_one_draws(lift_file, rendered, tmp_path, monkeypatch):
    out, seen = tmp_path / "two.hdf5", []

    def stop(drawn):
        seen.append(drawn)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_file(lift_file[0], out, CONFIG, workers=0, progress=stop)
    assert not out.exists()
    parts = tmp_path / ".two.hdf5.parts"
    (parts / "demo_2.agentview_image").write_bytes(b"torn")  # an episode is finished when all its files are
    again = []
    render_file(lift_file[0], out, CONFIG, workers=2, progress=again.append)
    assert again[0] == seen[-1] and len(again) == 2
    assert content(out) == content(rendered[0])
    other = dataclasses.replace(CONFIG, cameras=CAMERAS[:1], render=AS_ROBOSUITE)
    render_file(lift_file[0], out, other, workers=0)  # other work begins anew, and replaces the file
    assert "data/demo_0/obs/robot0_eye_in_hand_image" not in content(out)


@pytest.mark.sim
def test_robosuites_own_recording_gets_observations_too(lift_file, tmp_path):
    """Those of the file that was recorded with them, but for robosuite's own: they are 2 ms older than the state."""
    raw, out = tmp_path / "demo.hdf5", tmp_path / "out.hdf5"
    with h5py.File(lift_file[0]) as source, h5py.File(raw, "w") as file:
        data = file.create_group("data")
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": ["Panda"]})
        data.attrs["repository_version"], data.attrs["env"] = "1.5.2", "Lift"
        demo = data.create_group("demo_1")
        demo.attrs["model_file"] = source["data/demo_1"].attrs["model_file"]
        for key in ("states", "actions"):
            source.copy(f"data/demo_1/{key}", demo, key)
    found = render_file(raw, out, CONFIG, workers=0)
    assert found.raw and found.names == ("demo_1",)
    with h5py.File(lift_file[0]) as source, h5py.File(out) as file:
        demo, recorded = file["data/demo_1"], source["data/demo_1"]
        for key in ("obs/object", "obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"):
            assert np.allclose(demo[key][0], recorded[key][0], atol=1e-6)  # after a reset they are the state's
            assert np.allclose(demo[key], recorded[key], atol=0.01)
            assert np.array_equal(demo[f"next_{key}"][:-1], demo[key][1:])
            assert demo[f"next_{key}"].shape == recorded[f"next_{key}"].shape
        for key in ("rewards", "dones"):
            assert (demo[key][()] != recorded[key][()]).sum() <= 1 and demo[key][-1] == recorded[key][-1] == 1
    dataset = load_dataset(DataConfig(path=str(out), obs_keys=("object", "robot0_eef_pos")))
    assert dataset.spec.env_id == "robosuite/Lift"
    assert dataset.spec.action == ENVS["lift"].spec().action


def change(path, tmp_path, edit):
    copy = tmp_path / "changed.hdf5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        edit(file)
    return copy


def _no_states(file):
    del file["data/demo_1/states"]


def _few_states(file):
    states = file["data/demo_1/states"][:-1]
    del file["data/demo_1/states"]
    file["data/demo_1/states"] = states


def _another_simulator(file):
    file["data"].attrs["env_args"] = json.dumps({"env_name": "Door-v1", "type": 2})


def _no_episodes(file):
    for name in list(file["data"]):
        del file["data"][name]


@pytest.mark.sim
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_no_states, "data/demo_1 holds no simulator states"),
        (_few_states, "data/demo_1/states has shape"),
        (_another_simulator, "was not recorded in robosuite or PushT: Door-v1"),
        (_no_episodes, "data holds no episode"),
    ],
)
def test_a_file_that_cannot_be_drawn_says_why(lift_file, tmp_path, edit, words):
    path = change(lift_file[0], tmp_path, edit)
    with pytest.raises(DataError, match=words):
        render_file(path, tmp_path / "out.hdf5", CONFIG, workers=0)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.sim
def test_a_model_of_another_release_names_its_episode(lift_file, tmp_path):
    def spoil(file):
        demo = file["data/demo_0"]
        demo.attrs["model_file"] = demo.attrs["model_file"].replace("gripper0_right_", "gripper0_")
        file["data"].attrs["env_args"] = file["data"].attrs["env_args"].replace("1.5.2", "1.4.1")

    path = change(lift_file[0], tmp_path, spoil)
    words = r"the model of demo_0 cannot be loaded(.|\n)*robosuite 1.5.2, and it says 1.4.1"
    with pytest.raises(DataError, match=words):
        render_file(path, tmp_path / "out.hdf5", CONFIG, workers=0)


@pytest.mark.sim
def test_a_full_disk_and_an_unknown_camera_are_told_before_anything_is_drawn(lift_file, tmp_path, monkeypatch):
    out = tmp_path / "out.hdf5"
    with pytest.raises(ConfigError, match="no camera 'agentviw'"):
        render_file(lift_file[0], out, RobosuiteConfig(cameras=(SceneCamera("agentviw"),)))
    monkeypatch.setattr(rendered_data.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10_000))
    with pytest.raises(FlowPolicyError, match=r"need 0.0\d* GB, and 1e-05 GB are free"):
        render_file(lift_file[0], out, CONFIG, workers=0)
    assert not out.exists()
