"""Files with pictures in RoboMimic's layout: read frame by frame, and refused in one sentence where they are wrong."""

import dataclasses
import warnings

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, DataWarning
from flowpolicy.core.spec import ImageSpec, RenderSpec, image_json
from flowpolicy.core.streams import STATES, Crop, Layout
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.frames import JpegFrames
from flowpolicy.data.normalize import Normalizer, NormalizerConfig
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler
from tests.pictures import CAMERAS, OBSERVATION, SIDE, write_blobs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flowpolicy" / "frames"


def read(path, **options):
    return load_dataset(DataConfig(path=str(path), **options))


def pictures_of(path, key, episodes):
    with h5py.File(path) as file:
        return np.concatenate([file[f"data/{name}/obs/{key}"][()] for name in episodes])


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_pictures_are_chosen_by_camera_or_by_name(tmp_path, compression):
    path = write_blobs(tmp_path / "blobs.hdf5", compression=compression)
    by_camera = read(path, cameras=("front", "wrist"))
    by_name = read(path, obs_keys=("state", *CAMERAS))
    for dataset in (by_camera, by_name):
        assert dataset.spec.observation == OBSERVATION and dataset.frames.keys() == set(CAMERAS)
        assert dataset.steps[keys.OBS].keys() == {"state"}, "no picture is a number"
        for key in CAMERAS:
            found = dataset.frames[key].take(np.arange(36))
            np.testing.assert_array_equal(found, pictures_of(path, key, dataset.names))
    alone = read(path, obs_keys=("wrist_image",))
    assert alone.spec.observation.keys() == {"wrist_image"} and not alone.steps[keys.OBS].keys()


def test_nobody_asks_for_pictures_and_none_are_read(tmp_path, cache):
    path = write_blobs(tmp_path / "blobs.hdf5")
    with pytest.warns(DataWarning, match="front_image"):
        dataset = read(path)
    assert dataset.spec.observation.keys() == {"state"} and not dataset.frames and not cache.exists()


def test_large_files_are_kept_as_jpeg_and_say_so(tmp_path, cache, monkeypatch):
    path = write_blobs(tmp_path / "blobs.hdf5")
    raw = read(path, cameras=("front",)).frames["front_image"].take(np.arange(36))
    monkeypatch.setattr("flowpolicy.data.frame_conversion.RAW_LIMIT", 1000)
    with pytest.warns(DataWarning, match=r"kept as JPEG of quality 95, .* dB from the pixels; --data\.frame-store raw"):
        dataset = read(path, cameras=("front",))
    assert isinstance(dataset.frames["front_image"], JpegFrames)
    coded = dataset.frames["front_image"].take(np.arange(36))
    assert 0 < np.abs(coded.astype(int) - raw).mean() < 2
    every = read(path, cameras=("front",), frame_store="raw").frames["front_image"]
    np.testing.assert_array_equal(every.take(np.arange(36)), raw)
    assert {folder.name for folder in cache.glob("*/*")} == {"front_image", "front_image.jpeg"}


def test_pictures_that_are_named_as_observations_are_there_when_the_columns_are_found_again(tmp_path, monkeypatch):
    path = write_blobs(tmp_path / "blobs.hdf5")
    digest = read(path, obs_keys=("state",)).sha256
    monkeypatch.setattr("flowpolicy.data.dataset.remembered_sha256", lambda path: digest)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # of the cache
            dataset = read(path, obs_keys=("state", "front_image"), memory_limit_mb=0)
        assert dataset.memory_mapped and dataset.frames.keys() == {"front_image"}


def test_the_next_pictures_are_never_read(tmp_path):
    def remove(file):
        for demo in file["data"].values():
            for key in CAMERAS:
                del demo[f"next_obs/{key}"]

    path = write_blobs(tmp_path / "blobs.hdf5", remove=remove)
    assert read(path, cameras=("front",)).frames["front_image"].shape == (36, SIDE, SIDE, 3)


def test_a_filter_reads_the_frames_of_its_episodes_from_the_same_store(tmp_path, cache):
    def mask(file):
        file["mask/some"] = np.array([b"demo_2", b"demo_0"])

    path = write_blobs(tmp_path / "blobs.hdf5", mask=mask)
    every, some = read(path, cameras=("front",)), read(path, cameras=("front",), filter_key="some")
    assert some.names == ("demo_0", "demo_2") and len(list(cache.iterdir())) == 1
    np.testing.assert_array_equal(
        some.frames["front_image"].take(np.arange(27)), pictures_of(path, "front_image", some.names)
    )
    assert every.frames["front_image"].shape[0] == 36


def floats(file):
    replace(file, "demo_0", lambda value: (value / 255).astype(np.float32))


def channels_first(file):
    replace(file, "demo_0", lambda value: np.moveaxis(value, 3, 1))


def depth(file):
    replace(file, "demo_0", lambda value: np.concatenate([value, value[..., :1]], -1))


def grey(file):
    replace(file, "demo_0", lambda value: value[..., :1])


def no_channels(file):
    replace(file, "demo_0", lambda value: value[..., 0])


def larger(file):
    replace(file, "demo_1", lambda value: np.repeat(value, 2, axis=1))


def fewer(file):
    replace(file, "demo_1", lambda value: value[:-2])


def absent(file):
    del file["data/demo_2/obs/front_image"]


def replace(file, name, change):
    obs = file[f"data/{name}/obs"]
    value = change(obs["front_image"][()])
    del obs["front_image"]
    obs["front_image"] = value


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (floats, "data/demo_0/obs/front_image holds pictures of float32"),
        (channels_first, "data/demo_0/obs/front_image has shape .* its colour channels come first"),
        (depth, "data/demo_0/obs/front_image has shape .* fourth channel"),
        (grey, "data/demo_0/obs/front_image has shape .* grey pictures"),
        (no_channels, r"data/demo_0/obs/front_image has shape .* no pictures"),
        (larger, "data/demo_1/obs/front_image has pictures of 72 x 36"),
        (fewer, "data/demo_1/obs/front_image has 7 pictures for 9 actions"),
        (absent, "data/demo_2/obs/front_image is missing"),
    ],
)
def test_wrong_pictures_are_one_clear_sentence(tmp_path, cache, damage, said):
    path = write_blobs(tmp_path / "blobs.hdf5", damage=damage)
    for options in ({"cameras": ("front",)}, {"obs_keys": ("state", "front_image")}):
        with pytest.raises(DataError, match=said) as refused:
            read(path, **options)
        assert refused.value.fix or refused.value.expected
    assert not cache.exists()


def test_a_file_that_was_cut_off_leaves_nothing_half_made(tmp_path, cache):
    path = write_blobs(tmp_path / "blobs.hdf5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated or damaged"):
        read(path, cameras=("front",))
    assert not list(cache.glob("*/front_image"))


def test_a_damaged_chunk_is_named(tmp_path, cache):
    path = write_blobs(tmp_path / "blobs.hdf5", compression="gzip")
    with h5py.File(path) as file:
        place = file["data/demo_1/obs/front_image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + 2 : place.byte_offset + place.size - 4] = bytes(place.size - 6)
    path.write_bytes(content)
    with pytest.raises(DataError, match="data/demo_1/obs/front_image cannot be read from picture 0"):
        read(path, cameras=("front",))
    assert not list(cache.glob("*/front_image"))


def test_an_unknown_camera_is_told_with_those_that_there_are(tmp_path):
    path = write_blobs(tmp_path / "blobs.hdf5")
    with pytest.raises(DataError, match=r"camera 'side'[\s\S]*known: front, wrist"):
        read(path, cameras=("side",))


def test_a_file_says_how_its_pictures_were_drawn(tmp_path):
    drawn = ImageSpec((SIDE, SIDE, 3), camera="front", fov_deg=45.0, render=RenderSpec("mujoco", msaa=0))
    path = write_blobs(tmp_path / "blobs.hdf5", images={"front_image": image_json(drawn)})
    assert read(path, cameras=("front",)).spec.images == {"front_image": drawn}
    wrong = dataclasses.replace(drawn, shape=(84, 84, 3))
    path = write_blobs(tmp_path / "wrong.hdf5", images={"front_image": image_json(wrong)})
    with pytest.raises(DataError, match="says that front_image has the shape"):
        read(path, cameras=("front",))


def test_windows_hold_pictures_of_the_rows_of_their_states(tmp_path):
    dataset = read(write_blobs(tmp_path / "blobs.hdf5"), cameras=("front", "wrist"))
    sampler = WindowSampler(dataset, 3, 4, 5)
    rows = torch.tensor([0, 1, 11, 12, 35])
    batch = sampler.at(rows)
    past = np.array([[0, 0, 0], [0, 0, 1], [9, 10, 11], [12, 12, 12], [33, 34, 35]])
    for key in CAMERAS:
        expected = dataset.frames[key].take(past.reshape(-1)).reshape(5, 3, SIDE, SIDE, 3)
        np.testing.assert_array_equal(batch[keys.OBS, key].numpy(), expected)
    transitions = TransitionSampler(dataset, 2, 4, 5).at(torch.tensor([0, 10, 30]))
    following = np.array([[3, 4], [10, 11], [33, 34]])
    for key in CAMERAS:
        expected = dataset.frames[key].take(following.reshape(-1)).reshape(3, 2, SIDE, SIDE, 3)
        np.testing.assert_array_equal(transitions[keys.NEXT_OBS, key].numpy(), expected)


def test_crops_come_from_a_stream_of_their_own_and_repeat_with_the_batches(tmp_path):
    dataset = read(write_blobs(tmp_path / "blobs.hdf5"), cameras=("front", "wrist"))
    crops = {key: Crop(30, 28) for key in CAMERAS}
    sampler = WindowSampler(dataset, 2, 4, 64, crops=crops)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = sampler.draw(generator)
    assert first[keys.OBS, "front_image"].shape == (64, 2, 30, 28, 3)
    generator.set_state(state)
    again = sampler.draw(generator)
    for key in CAMERAS:
        assert torch.equal(first[keys.OBS, key], again[keys.OBS, key])
    generator.set_state(state)
    index = torch.randint(sampler.rows, (64,), generator=generator)
    whole = sampler.at(index)
    assert torch.equal(whole[keys.ACTION], first[keys.ACTION]), "rows are those that are drawn without crops"
    places = {key: _places(whole[keys.OBS, key], first[keys.OBS, key]) for key in CAMERAS}
    assert places["front_image"] != places["wrist_image"], "every camera has windows of its own"
    assert len(set(places["front_image"])) > 20, "and every row"


def _places(whole, cut):
    """Where the windows lie, the same for both pictures of a history."""
    found = []
    for frames, parts in zip(whole.numpy(), cut.numpy(), strict=True):
        views = np.lib.stride_tricks.sliding_window_view(frames, parts.shape[1:3], axis=(1, 2))
        views = np.moveaxis(views, 3, -1)
        equal = (views == parts[:, None, None]).all(axis=(0, 3, 4, 5))
        found.append(tuple(np.argwhere(equal)[0]))
        assert equal.any()
    return found


def test_batches_of_states_are_what_they_were_before_there_were_pictures(tmp_path):
    path = write_blobs(tmp_path / "blobs.hdf5")
    seeing, blind = read(path, cameras=("front",)), read(path, obs_keys=("state",))
    a = WindowSampler(seeing, 1, 4, 16).draw(torch.Generator().manual_seed(0))
    b = WindowSampler(blind, 1, 4, 16, crops={"front_image": Crop(30, 30)}).draw(torch.Generator().manual_seed(0))
    assert torch.equal(a[keys.OBS, "state"], b[keys.OBS, "state"]) and torch.equal(a[keys.ACTION], b[keys.ACTION])


def test_states_are_scaled_and_pictures_are_not(tmp_path):
    dataset = read(write_blobs(tmp_path / "blobs.hdf5"), cameras=("front",))
    normalizer, layout = Normalizer.fit(dataset, NormalizerConfig()), Layout(dataset.spec.observation)
    sampler = WindowSampler(dataset, 1, 4, 16, streams=lambda obs: layout.pack(normalizer.obs(obs)))
    obs = sampler.draw(torch.Generator().manual_seed(0))[keys.OBS]
    assert obs.keys() == {STATES, "front_image"} and obs["front_image"].dtype == torch.uint8
