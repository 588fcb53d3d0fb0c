"""Every format into every format and back: numbers stay what they are, and what is lost is said before."""

import dataclasses
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, DataError, FlowPolicyError
from flowpolicy.data.conversion import FORMATS, losses, require_lossless, require_replaceable, survey, write_all
from flowpolicy.data.dataset import DataConfig, load_dataset, open_recording
from flowpolicy.data.episode_edits import Edits, Selection, edited, merged, of_file, select, shares_of
from flowpolicy.data.episode_file import open_episodes
from flowpolicy.data.episode_writers import WRITERS
from flowpolicy.data.ogbench import write_npz
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter

from .conftest import ENV_ARGS, make_episodes, write_robomimic

NUMBERS = np.random.default_rng(0)
STEPS = (6, 9, 4)
TWO_WAY = [name for name, traits in FORMATS.items() if traits.write and name != "lerobot"]


def write_flat(path, *, ogbench):
    """Three episodes of one vector; of OGBench the first is solved on its way, of D4RL one ends and two are cut off."""
    rows = sum(STEPS)
    last = np.isin(np.arange(rows), np.cumsum(STEPS) - 1)
    obs = NUMBERS.normal(size=(rows, 4)).astype(np.float32)
    action = NUMBERS.uniform(-1, 1, (rows, 2))
    if ogbench:
        rewards = -NUMBERS.integers(1, 3, rows).astype(np.float32)
        rewards[2] = 0
        write_npz(
            path,
            {"observations": obs, "actions": action, "terminals": last, "rewards": rewards, "masks": rewards != 0,
             "qpos": NUMBERS.normal(size=(rows, 3)), "env_id": np.array("cube-single-singletask-task1-v0")},
        )  # fmt: skip
        return path
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = obs, action
        file["next_observations"] = np.concatenate([obs[1:], obs[:1]])
        file["rewards"] = NUMBERS.normal(size=rows).astype(np.float32)
        file["terminals"] = np.arange(rows) == STEPS[0] - 1
        file["timeouts"] = last & (np.arange(rows) != STEPS[0] - 1)
        file["infos/qpos"] = NUMBERS.normal(size=(rows, 3))
        file["infos/initial_state/qvel"] = NUMBERS.normal(size=(len(STEPS), 2))
    return path


def write_seeing(path):
    """RoboMimic with pictures, an odd array, an attribute and dones that mark ends only."""
    with RobomimicWriter(path, ENV_ARGS) as writer:
        for index, one in enumerate(make_episodes(3)):
            pictures = NUMBERS.integers(0, 256, (len(one.actions), 5, 6, 3), dtype=np.uint8)
            extra = {"infos/torque": NUMBERS.normal(size=(len(one.actions), 2)), "ticks": np.arange(91)}
            both = {
                "obs": {**one.obs, "front_image": pictures},
                "extra": extra,
                "notes": {"operator": "ann" if index else "bo"},
            }
            writer.add(dataclasses.replace(one, **both), ["train"])
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    home = tmp_path_factory.mktemp("in")
    found = {
        "robomimic": write_seeing(home / "robomimic"),
        "d4rl": write_flat(home / "d4rl", ogbench=False),
        "ogbench": write_flat(home / "ogbench", ogbench=True),
    }
    if importlib.util.find_spec("minari") is not None:
        found["minari"] = rewritten(found["d4rl"], home / "minari", "minari")
    return found


def rewritten(source, out, target, stream=of_file, lossy=True):
    with open_episodes(source) as file:
        passing = stream(file)
        found = survey(passing)
        lost = require_lossless(passing, found, target, lossy=lossy)
        write_all([(passing, out)], target, [found], command="test", lost=[lost])
    return out


def everything(path):
    """Numbers of every episode, by their place."""
    with open_episodes(path) as file:
        for number in range(len(file.names)):
            one = file.read(number)
            flat = np.concatenate([value.reshape(one.steps, -1) for value in one.obs.values()], axis=1)
            yield {
                "obs": flat,
                "last": np.concatenate([each.reshape(-1) for each in one.last_obs.values()]) if one.last_obs else None,
                "action": one.action,
                "reward": one.reward,
                "terminated": one.terminated,
                "ended": one.terminated[-1],
                "states": one.states,
                **{place: np.asarray(each) for place, each in one.aside.items()},
                **{key: np.concatenate(list(each.blocks())) for key, each in one.pictures.items()},
            }


LOST = {
    ("robomimic", "d4rl"): {"states", "front_image", "ticks", "dones"},
    ("robomimic", "minari"): {"states", "front_image", "ticks", "dones"},
    ("robomimic", "ogbench"): {"states", "front_image", "ticks", "last", "reward", "terminated", "ended", "dones"},
    ("d4rl", "ogbench"): {"last", "reward", "terminated", "ended", "infos/initial_state/qvel"},
    ("d4rl", "minari"): {"infos/initial_state/qvel"},
    ("minari", "ogbench"): {"last", "reward", "terminated", "ended"},
    ("ogbench", "d4rl"): {"terminated"},
    ("ogbench", "minari"): {"last"},
}
"""What does not come back, and is listed."""


@pytest.mark.parametrize("there", TWO_WAY)
@pytest.mark.parametrize("here", TWO_WAY)
def test_what_comes_back_is_bit_equal(here, there, sources, tmp_path):
    if "minari" in (here, there):
        pytest.importorskip("minari", reason="writing Minari needs its library")
    lost = LOST.get((here, there), set())
    away = rewritten(sources[here], tmp_path / "away", there)
    before = list(everything(sources[here]))
    if "reward" in lost:  # which no reader takes without a label
        columns = np.load(away)
        for place, name in (("obs", "observations"), ("action", "actions")):
            np.testing.assert_array_equal(np.concatenate([one[place] for one in before]), columns[name])
        return
    after = list(everything(away))
    assert len(before) == len(after)
    for one, two in zip(before, after, strict=True):
        for place in one.keys() - lost:
            if one[place] is None:
                assert two.get(place) is None, place
                continue
            assert np.asarray(one[place]).dtype == np.asarray(two[place]).dtype, place
            np.testing.assert_array_equal(one[place], two[place], err_msg=place)
    if (here, there) == ("ogbench", "d4rl"):  # without all masks, its rewards mean nothing
        return
    back = rewritten(away, tmp_path / "back", here)
    for one, two in zip(before, everything(back), strict=True):
        for place in one.keys() - lost - {"dones"}:
            np.testing.assert_array_equal(one[place], two[place], err_msg=place)


@pytest.mark.parametrize(("here", "there"), [*itertools.permutations(["robomimic", "d4rl", "ogbench"], 2)])
def test_training_reads_the_same(here, there, sources, tmp_path):
    if "reward" in LOST.get((here, there), ()):
        return
    away = rewritten(sources[here], tmp_path / "away", there)
    one, two = (load_dataset(DataConfig(path=str(path))) for path in (sources[here], away))
    assert one.lengths.tolist() == two.lengths.tolist()
    for key in ("action", "reward", *(() if "terminated" in LOST.get((here, there), ()) else ("mask",))):
        assert one.steps[key].equal(two.steps[key]), key


def said(source, target, stream=of_file):
    with open_episodes(source) as file:
        passing = stream(file)
        return " | ".join(losses(passing, survey(passing), target))


def test_what_is_lost_is_said(sources):
    words = said(sources["robomimic"], "d4rl")
    for part in (
        "names of observations: eef, object",
        "pictures: front_image",
        "success",
        "states",
        "actions delta",
        "train",
        "ticks",
        "operator",
    ):
        assert part in words, part
    assert said(sources["robomimic"], "robomimic") == said(sources["d4rl"], "robomimic") == ""
    assert said(sources["d4rl"], "d4rl") == "" == said(sources.get("minari", sources["d4rl"]), "d4rl")
    assert "made up: the observation after the last action" in said(sources["ogbench"], "minari")
    assert "D4RL would split" in said(sources["ogbench"], "d4rl")
    assert "unsolved sub-tasks" in said(sources["d4rl"], "ogbench")
    with pytest.raises(DataError, match="--lossy"):
        rewritten(sources["robomimic"], sources["d4rl"].parent / "new", "d4rl", lossy=False)
    assert not (sources["d4rl"].parent / "new").exists()


def test_minari_reads_what_was_written(sources, tmp_path):
    minari = pytest.importorskip("minari", reason="the library reads it")
    away = rewritten(sources["robomimic"], tmp_path / "away", "minari")
    found = minari.MinariDataset(away / "data")
    with open_episodes(sources["robomimic"]) as file:
        for number, episode in enumerate(found.iterate_episodes()):
            one = file.read(number)
            assert (
                len(episode.rewards)
                == one.steps
                == found.storage.get_episode_metadata([number]).__iter__().__next__()["total_steps"]
            )
            np.testing.assert_array_equal(episode.observations["eef"][:-1], one.obs["eef"])
            np.testing.assert_array_equal(episode.observations["eef"][-1], one.last_obs["eef"])
            np.testing.assert_array_equal(episode.infos["torque"], one.aside["infos/torque"])
    assert json.loads(json.loads((away / "data" / "metadata.json").read_text())["provenance"])["sources"][0]["sha256"]


def test_provenance_is_kept_and_grows(sources, tmp_path):
    for target in ("robomimic", "d4rl", "ogbench"):
        twice = (
            rewritten(rewritten(sources["d4rl"], tmp_path / "a", target), tmp_path / target, target)
            if target != "ogbench"
            else rewritten(sources["ogbench"], tmp_path / target, target)
        )
        with open_episodes(twice) as file:
            one = json.loads(file.recording.provenance)
            assert one["command"] == "test" and one["flowpolicy"] and len(one["sources"][0]["sha256"]) == 64
            if target != "ogbench":
                assert json.loads(one["sources"][0]["provenance"])["sources"][0]["path"] == str(sources["d4rl"])


def lengths(path):
    with open_episodes(path) as file:
        return list(file.recording.lengths)


def chosen(path, **conditions):
    with open_episodes(path) as file:
        return select(file, Selection(**conditions))


def test_episodes_are_chosen_by_what_is_stored(sources):
    seeing = sources["robomimic"]
    assert chosen(seeing, success="yes") == [1] and chosen(seeing, success="no") == [0, 2]
    assert chosen(seeing, min_length=21, max_length=21) == [1] == chosen(seeing, min_return=0.5)
    assert chosen(seeing, episodes=("demo_2", "0")) == [0, 2] and chosen(seeing, operator="ann") == [1, 2]
    assert chosen(seeing, filter_key="train", max_return=0.5) == [0, 2]
    for wrong, told in (
        ({"operator": "an"}, "did you mean 'ann'"),
        ({"filter_key": "valid"}, "no episode has the filter key"),
        ({"instruction": "lift"}, "stores no instruction"),
        ({"min_length": 99}, "no episode meets"),
        ({"episodes": ("demo_9",)}, "demo_0 to demo_2"),
    ):
        with pytest.raises(FlowPolicyError, match=told):
            chosen(seeing, **wrong)
    with pytest.raises(DataError, match="does not say which episodes succeeded"):
        chosen(sources["d4rl"], success="yes")


def test_files_that_differ_are_not_merged_and_the_difference_is_named(tmp_path):
    first = write_robomimic(tmp_path / "a", make_episodes(2))

    def told(episodes=None, **env_args):
        with RobomimicWriter(tmp_path / "b", {**ENV_ARGS, **env_args}) as writer:
            for one in episodes or make_episodes(2, seed=1):
                writer.add(one)
        with pytest.raises(DataError) as error, open_episodes(first) as one, open_episodes(tmp_path / "b") as two:
            merged([one, two])
        return error.value.what

    other = {"control_freq": 10, "controller_configs": ENV_ARGS["env_kwargs"]["controller_configs"]}
    assert "rate_hz is 20.0 in one and 10.0 in the other" in told(env_kwargs=other)
    assert "convention is delta in one and unstated in the other" in told(env_kwargs={"control_freq": 20})
    renamed = [dataclasses.replace(one, obs={"eef2": one.obs["eef"]}, next_obs={}) for one in make_episodes(2)]
    assert "has the observation eef" in told(renamed)
    wide = [
        dataclasses.replace(one, obs={**one.obs, "eef": one.obs["object"]}, next_obs={}) for one in make_episodes(2)
    ]
    assert "the observation eef has the shape (3,) in one and (5,)" in told(wide)


def test_merged_files_hold_the_episodes_of_all(tmp_path):
    paths = [write_robomimic(tmp_path / name, make_episodes(2, seed)) for seed, name in enumerate("ab")]
    with open_episodes(paths[0]) as one, open_episodes(paths[1]) as two:
        passing = merged([one, two])
        write_all([(passing, tmp_path / "c")], "robomimic", [survey(passing)], command="", lost=[[]])
    both = [*everything(paths[0]), *everything(paths[1])]
    for one, two in zip(both, everything(tmp_path / "c"), strict=True):
        for place, value in one.items():
            np.testing.assert_array_equal(value, two[place])
    with h5py.File(tmp_path / "c") as file:
        assert len(file["mask/train"]) == 4 and len(file["mask/okay"]) == 2
    twice = [write_robomimic(tmp_path / name, make_episodes(2)) for name in "de"]
    with pytest.raises(DataError, match="same content"), open_episodes(twice[0]) as one, open_episodes(twice[1]) as two:
        merged([one, two])


def test_shares_are_disjoint_whole_and_repeatable():
    parts = shares_of(10, [0.8, 0.1, 0.1], 3)
    assert [len(part) for part in parts] == [8, 1, 1] and sorted(itertools.chain(*parts)) == list(range(10))
    assert parts == shares_of(10, [0.8, 0.1, 0.1], 3) != shares_of(10, [0.8, 0.1, 0.1], 4)
    for wrong in ([0.5, 0.6], [0.0, 1.0], [0.99, 0.01], []):
        with pytest.raises(ConfigError):
            shares_of(10, wrong, 0)


def test_edits_change_what_they_name_and_nothing_else(sources, tmp_path):
    edits = Edits(
        drop=("demo_0",),
        relabel={"1": "failed", "demo_2": "success"},
        rename={"eef": "hand", "front_image": "top_image"},
    )
    out = rewritten(sources["robomimic"], tmp_path / "out", "robomimic", lambda file: edited(file, edits))
    before, after = list(everything(sources["robomimic"]))[1:], list(everything(out))
    with open_episodes(out) as file:
        assert set(file.spec.observation) == {"hand", "object", "top_image"}
        assert [file.read(number).success for number in (0, 1)] == [False, True]
    for one, two in zip(before, after, strict=True):
        for place in ("obs", "last", "action", "states"):
            np.testing.assert_array_equal(one[place], two[place])
        np.testing.assert_array_equal(one["front_image"], two["top_image"])
    assert [one["ended"] for one in after] == [False, True]
    for wrong in (
        {"rename": {"eff": "x"}},
        {"rename": {"eef": "object"}},
        {"rename": {"eef": "../x"}},
        {"relabel": {"demo_1": "good"}},
        {"drop": ("x",)},
    ):
        with pytest.raises(FlowPolicyError), open_episodes(sources["robomimic"]) as file:
            edited(file, Edits(**wrong))


def test_what_stands_still_at_both_ends_is_cut(tmp_path):
    place = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3.0])
    reward = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1.0])
    one = RecordedEpisode(
        actions=np.array([0, 0, 1, 0, 1, 1, 0, 0, 0, 0.0])[:, None].repeat(7, 1),
        rewards=reward,
        dones=(reward > 0).astype(int),
        obs={"x": place[:, None]},
        next_obs={"x": np.append(place[1:], 3.0)[:, None]},
        states=place[:, None],
    )
    path = write_robomimic(tmp_path / "still", [one])
    out = rewritten(path, tmp_path / "out", "robomimic", lambda file: edited(file, Edits(trim_still=0.0)))
    (got,) = everything(out)
    # Rows 0 and 1 are alike, row 2 acts; rows 8 and 9 are alike, and row 7 has no reward.
    assert got["obs"][:, 0].tolist() == place[1:9].tolist() and got["reward"].tolist() == reward[1:9].tolist()
    assert got["last"].tolist() == [3.0] and got["ended"]
    path = write_robomimic(tmp_path / "calm", [dataclasses.replace(one, rewards=reward * 0)])
    with pytest.raises(DataError, match="stands still from beginning to end"):
        rewritten(path, tmp_path / "none", "robomimic", lambda file: edited(file, Edits(trim_still=9.0)))
    assert not (tmp_path / "none").exists()


def test_no_folder_is_removed_that_is_no_data_set(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    for target in ("minari", "d4rl"):
        with pytest.raises(ConfigError):
            require_replaceable(tmp_path / "home", target)
    assert set(WRITERS) <= {name for name, traits in FORMATS.items() if traits.write}


def test_lerobot_and_back_with_pictures_and_text(tmp_path):
    pytest.importorskip("av", reason="writing videos")
    pytest.importorskip("pyarrow", reason="writing LeRobot's tables")
    path, rows, columns = tmp_path / "in", np.arange(64)[:, None], np.arange(96)[None, :]
    with RobomimicWriter(path, ENV_ARGS) as writer:
        for index, one in enumerate(make_episodes(3)):
            shades = [
                np.stack([rows * 2 + 0 * columns, columns * 2 + 0 * rows, rows + columns + t], -1)
                for t in range(len(one.actions))
            ]
            pictures = np.stack(shades).astype(np.uint8)
            writer.add(
                dataclasses.replace(
                    one, obs={**one.obs, "front_image": pictures}, notes={"instruction": f"task {index % 2}"}
                ),
                ("better", "train") if index != 1 else ("valid",),
            )
    away = rewritten(path, tmp_path / "away", "lerobot")
    some = rewritten(away, tmp_path / "some", "lerobot", lambda file: of_file(file, [2, 1]))
    back = rewritten(some, tmp_path / "back", "robomimic")
    before, after = list(everything(path)), list(everything(back))
    with open_episodes(back) as file:
        assert [file.read(number).text for number in (0, 1)] == ["task 0", "task 1"]
        assert file.env_args == ENV_ARGS and file.read(1).success is True
        assert [file.read(number).filters for number in (0, 1)] == [("better", "train"), ("valid",)]
    with open_recording(DataConfig(str(away), filter_key="better")) as better:
        assert better.names == ("episode_000000", "episode_000002")
    assert json.loads((away / "meta/info.json").read_text())["splits"]["better"] == "0:1,2:3"
    for one, two in zip((before[2], before[1]), after, strict=True):
        for place in ("obs", "action", "reward"):
            np.testing.assert_array_equal(np.float32(one[place]), two[place])
        noise = np.mean((one["front_image"].astype(float) - two["front_image"]) ** 2)
        assert 10 * np.log10(255**2 / noise) > 35
    assert "pictures bit for bit" in said(path, "lerobot") and "numbers beyond float32" in said(path, "lerobot")
    assert "filter keys" not in said(path, "lerobot") and "filter keys: " in said(away, "minari")
    assert "text" not in said(away, "robomimic") and "instructions of 3 of 3" in said(away, "minari")
    minari = rewritten(write_flat(tmp_path / "d4rl", ogbench=False), tmp_path / "m", "d4rl")
    with pytest.raises(ConfigError, match="--fps N"):
        rewritten(minari, tmp_path / "no", "lerobot")
    odd = dataclasses.replace(make_episodes(1)[0], actions=np.full_like(make_episodes(1)[0].actions, np.nan))
    with RobomimicWriter(tmp_path / "nan", ENV_ARGS) as writer:
        writer.add(odd)
    with pytest.raises(DataError, match="action of demo_0 is no number of float32 in step 0"):
        rewritten(tmp_path / "nan", tmp_path / "no", "lerobot")
    assert not (tmp_path / "no").exists()


def test_the_table_of_formats_is_true(sources):
    """Of what is said, of what is written, and of what was really kept."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    written = {row[0]: row[1:] for row in rows if len(row) == 8}
    for name, traits in FORMATS.items():
        yes = [traits.read, traits.write, traits.pictures, traits.success, traits.rewards]
        assert written[traits.title] == [
            *("yes" if one else "no" for one in yes),
            traits.goals or "no",
            "yes" if traits.text else "no",
        ]
        assert traits.write == (name in WRITERS)
        if traits.write:
            lost = said(sources["robomimic"], name)
            assert ("pictures: " in lost) == (not traits.pictures), name
            assert ("success" in lost) == (not traits.success), name


KILLED = """
import sys, time
from pathlib import Path
from flowpolicy.data import conversion, episode_edits, episode_file, stored_episode
read = episode_file.EpisodeFile.read
def slow(file, index):
    print("read", flush=True)
    time.sleep(0.2)
    return read(file, index)
episode_file.EpisodeFile.read = slow
with episode_file.open_episodes(Path(sys.argv[1])) as file:
    passing = episode_edits.of_file(file)
    found = conversion.survey(passing)
    print("writing", flush=True)
    conversion.write_all([(passing, Path(sys.argv[2]))], sys.argv[3], [found], command="", lost=[[]])
"""


@pytest.mark.parametrize("target", ["robomimic", "minari"])
def test_killed_while_writing(target, sources, tmp_path):
    if target == "minari":
        pytest.importorskip("minari", reason="writing Minari needs its library")
    out = rewritten(sources["d4rl"], tmp_path / "out", target)
    before = {path: path.read_bytes() for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file()}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(sources["robomimic"]), str(out), target], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while process.stdout.readline() != b"writing\n":
        pass
    for _ in range(2):
        assert process.stdout.readline() == b"read\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert {path: path.read_bytes() for path in before} == before
