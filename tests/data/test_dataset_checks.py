import io
from dataclasses import replace

import h5py
import numpy as np
import pytest
from rich.console import Console

from flowpolicy.data.dataset import DataConfig, load_unchecked
from flowpolicy.data.dataset_checks import describe, diagnose, failed
from flowpolicy.data.dataset_report import print_description, print_findings

from .conftest import make_episodes, write_robomimic


def findings(path, **kwargs):
    return {f.check: f for f in diagnose(load_unchecked(DataConfig(path=str(path))), **kwargs)}


def test_healthy_file(robomimic_file):
    found = findings(robomimic_file)
    assert {f.level for f in found.values()} == {"ok"} and len(found) == 10
    assert not failed(found.values())


def test_description(robomimic_file):
    facts = describe(robomimic_file)
    assert (facts.format, facts.episodes, facts.steps, facts.lengths) == ("robomimic", 12, 306, (20, 25, 31))
    assert facts.rewards == (0.0, 1.0) and facts.success == 0.5
    assert facts.filters == {"okay": 6, "train": 12}
    assert facts.observations["object"][0] == (5,)
    assert facts.size == robomimic_file.stat().st_size


def test_every_place_that_is_not_finite_is_an_error(robomimic_file):
    with h5py.File(robomimic_file, "a") as file:
        file["data/demo_3/actions"][7, 2] = np.nan
        file["data/demo_5/obs/eef"][0, 0] = np.inf
    found = findings(robomimic_file)
    assert found["finite"].level == "error" and failed(found.values())
    assert "action at demo_3 step 7" in found["finite"].message
    assert "obs/eef at demo_5 step 0" in found["finite"].message
    assert np.isfinite(describe(robomimic_file).action_range).all()


def change(episodes, index, **columns):
    episodes[index] = replace(episodes[index], **columns)
    return episodes


def test_constant_dimension(tmp_path, episodes):
    for index, episode in enumerate(episodes):
        actions = episode.actions.copy()
        actions[:, 4] = 0.25
        change(episodes, index, actions=actions)
    found = findings(write_robomimic(tmp_path / "x.hdf5", episodes))["constant dimensions"]
    assert found.level == "warning" and "action[4]" in found.message and "action[3]" not in found.message


def test_share_outside_the_range(tmp_path, episodes):
    actions = episodes[0].actions.copy()
    actions[:3, 0] = 1.5
    found = findings(write_robomimic(tmp_path / "x.hdf5", change(episodes, 0, actions=actions)))["action range"]
    assert found.level == "warning" and f"{3 / 306:.1%}" in found.message


def test_length_outlier(tmp_path):
    episodes = make_episodes(8)
    long = make_episodes(200)[-1]
    found = findings(write_robomimic(tmp_path / "x.hdf5", [*episodes, long]))["episode lengths"]
    assert found.level == "warning" and found.message.startswith("unusually short or long (1)")
    assert "demo_8 (219)" in found.message


def test_no_reward(tmp_path, episodes):
    for index, episode in enumerate(episodes):
        change(episodes, index, rewards=np.zeros(len(episode.rewards)))
    assert findings(write_robomimic(tmp_path / "x.hdf5", episodes))["rewards"].level == "warning"


def test_duplicate(tmp_path, episodes):
    found = findings(write_robomimic(tmp_path / "x.hdf5", [*episodes, episodes[4]]))["duplicates"]
    assert found.level == "warning" and "demo_12 = demo_4" in found.message


def test_jump_and_switch(tmp_path, episodes):
    for index, episode in enumerate(episodes):
        time = np.arange(len(episode.actions))[:, None]
        actions = 0.5 * np.sin(0.1 * time + np.arange(7))
        actions[:, 6] = np.where(time[:, 0] < 10, -1, 1)
        change(episodes, index, actions=actions)
    assert findings(write_robomimic(tmp_path / "smooth.hdf5", episodes))["action jumps"].level == "ok"
    actions = episodes[3].actions.copy()
    actions[12, :3] = 5.0
    found = findings(write_robomimic(tmp_path / "jump.hdf5", change(episodes, 3, actions=actions)))["action jumps"]
    assert found.level == "warning" and found.message.startswith("2 of 294") and "demo_3 step 1" in found.message


@pytest.mark.parametrize(("successes", "level"), [(5, "ok"), (3, "warning"), (0, "error")])
def test_replay_is_injected(robomimic_file, successes, level):
    asked = []

    def replay(dataset, count):
        asked.append(count)
        return [i < successes for i in range(count)]

    found = findings(robomimic_file, replay=replay, episodes=5)["replay"]
    assert asked == [5] and found.level == level and f"{successes} of 5" in found.message


def test_reports_print(robomimic_file, d4rl_file):
    console = Console(file=io.StringIO(), width=160)
    for path in (robomimic_file, d4rl_file):
        print_description(describe(path), console)
        print_findings(list(findings(path).values()), console)
    text = console.file.getvalue()
    for word in ("robosuite/Lift", "okay (6)", "20 Hz", "50.0% of episodes", "d4rl", "action range"):
        assert word in text


def test_rows_that_repeat_and_then_jump_are_a_gap_and_rows_at_rest_are_none(tmp_path, episodes):
    def file(name, *, gap):
        for index, episode in enumerate(episodes):
            way = 0.01 * np.arange(len(episode.actions))[:, None] * np.ones(3)
            if index == 2:
                way[10:18] = way[9]  # at rest, then on from there; or on from where it would have been
                way[18:] -= 0.0 if gap else 0.08
            change(episodes, index, obs={"eef": way}, next_obs={"eef": way})
        return findings(write_robomimic(tmp_path / name, episodes))["gaps"]

    assert file("rest.hdf5", gap=False).level == "ok"
    found = file("gap.hdf5", gap=True)
    assert found.level == "warning"
    assert "8 of them from demo_2 step 10" in found.message


def test_a_quaternion_whose_sign_changes_is_found_wherever_it_stands(tmp_path, episodes):
    rng = np.random.default_rng(0)
    for index, episode in enumerate(episodes):
        turned = 0.01 * np.arange(len(episode.actions))
        pose = np.stack([rng.normal(size=len(turned)), np.cos(turned), np.sin(turned), 0 * turned, 0 * turned], axis=1)
        if index == 1:
            pose[7:, 1:] *= -1
        change(episodes, index, obs={"object": pose}, next_obs={"object": pose})
    found = findings(write_robomimic(tmp_path / "x.hdf5", episodes))["quaternions"]
    assert found.level == "warning"
    assert "object[1:5] 1 times, first at demo_1 step 7" in found.message
