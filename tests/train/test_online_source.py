"""Continuing with environment steps: what is mixed, what is stored, and that a stop changes nothing."""

import csv
import dataclasses
import shutil

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.qc import QC
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_tensors
from flowpolicy.data.dataset import DataConfig
from flowpolicy.envs import find_env
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.plain import Plain
from flowpolicy.train import Experiment, Trainer
from flowpolicy.train.online_source import FIRST_INDEX, OnlineConfig
from flowpolicy.train.verify import compare
from tests.conftest import DEVICES

SMALL = {"net": Plain(width=16, depth=2), "critic": CriticConfig(width=16, depth=2)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.hdf5"
    make_demonstrations("toy", path, episodes=6, seed=0, quality="expert", workers=1)
    return path


@pytest.fixture
def offline(toy):
    return Experiment(
        agent=FQL(**SMALL),
        env="toy",
        data=DataConfig(path=str(toy)),
        steps=4,
        batch_size=8,
        log_every=1,
        checkpoint_every=50,
        keep_checkpoints=0,
        compile=False,
        tensorboard=False,
    )


@pytest.fixture
def slot():
    env = find_env("toy").make(1)
    yield env
    env.close()


def train(experiment, run, slot=None, *, resume=False):
    trainer = Trainer(experiment, run, find_env("toy").spec(), resume=resume, slot=slot)
    trainer.train()
    return trainer


def online(offline, base, **options):
    return dataclasses.replace(offline, steps=130, online=OnlineConfig(base=str(base), **options))


def test_it_starts_with_everything_of_the_base_and_leaves_it_alone(offline, slot, tmp_path):
    train(offline, tmp_path / "base")
    before = checkpoint.resolve(tmp_path / "base")
    trainer = Trainer(
        online(offline, tmp_path / "base"), tmp_path / "on", find_env("toy").spec(), resume=False, slot=slot
    )
    for name, tensors in trainer.agent.state_dict().items():
        stored = read_tensors(before / f"{name}.safetensors")
        assert all(torch.equal(value, stored[key]) for key, value in tensors.items())
    trainer.train()
    assert checkpoint.resolve(tmp_path / "base") == before


@pytest.mark.parametrize("agent", [FQL(**SMALL), QC(**SMALL, chunk=5, execute=5, candidates=2, target_candidates=2)])
@pytest.mark.parametrize("device", DEVICES)
def test_resume_equals_the_uninterrupted_run_bit_for_bit(agent, device, offline, slot, tmp_path):
    offline = dataclasses.replace(offline, agent=agent, device=device)
    train(offline, tmp_path / "base")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(online(offline, tmp_path / "base"), whole, slot)
    shutil.copytree(whole, broken)
    steps = sorted(int(folder.name.split("_")[1]) for folder in (broken / "checkpoints").glob("step_*"))
    assert len(steps) >= 3
    assert steps[0] > 50, "a checkpoint that falls into an episode waits for its end"
    for step in steps[1:]:
        shutil.rmtree(broken / "checkpoints" / f"step_{step:08d}")
    (broken / "checkpoints" / "LATEST").write_text(f"step_{steps[0]:08d}\n")
    train(online(offline, tmp_path / "base"), broken, slot, resume=True)
    compare(checkpoint.resolve(whole), checkpoint.resolve(broken))
    assert (whole / "episodes.csv").read_text() == (broken / "episodes.csv").read_text()
    names = sorted(path.name for path in (whole / "replay").iterdir())
    assert names == sorted(path.name for path in (broken / "replay").iterdir())
    for name in names:
        first, second = read_tensors(whole / "replay" / name), read_tensors(broken / "replay" / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("ratio", "fresh"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_batches_hold_the_share_of_experience_that_was_asked_for(ratio, fresh, offline, slot, tmp_path):
    train(offline, tmp_path / "base")
    trainer = train(online(offline, tmp_path / "base", ratio=ratio), tmp_path / "on", slot)
    episodes = trainer.source.replay.episodes
    collected = {tuple(row.tolist()) for e in episodes for row in e["action"]}
    for seed in range(5):
        batch = trainer.source.replay.draw(torch.Generator().manual_seed(seed))
        assert sum(tuple(row.tolist()) in collected for row in batch["action"][:, 0]) == fresh
        assert batch.rows == 8


def test_episodes_are_whole_and_counted(offline, slot, tmp_path):
    train(offline, tmp_path / "base")
    indices = []
    real = slot.reset
    slot.reset = lambda chosen, slots: indices.extend(chosen) or real(chosen, slots)
    trainer = train(online(offline, tmp_path / "base", updates_per_step=2), tmp_path / "on", slot)
    rows = list(csv.DictReader((tmp_path / "on" / "episodes.csv").open()))
    lengths = [int(row["length"]) for row in rows]
    assert lengths == [len(e["action"]) for e in trainer.source.replay.episodes]
    assert [int(row["step"]) for row in rows] == torch.tensor(lengths).cumsum(0).tolist()
    assert sum(lengths) <= 65 < sum(lengths) + find_env("toy").spec().horizon  # 130 updates, two per step
    assert indices == list(range(FIRST_INDEX, FIRST_INDEX + len(indices)))


def test_collected_rewards_are_scaled_as_those_of_the_file(offline, slot, tmp_path):
    train(offline, tmp_path / "base")
    half = dataclasses.replace(offline, data=dataclasses.replace(offline.data, reward_scale=0.5))
    plain, scaled = (
        train(online(one, tmp_path / "base"), tmp_path / name, slot).source.replay.episodes[0]
        for name, one in (("one", offline), ("half", half))
    )
    assert torch.equal(plain["action"], scaled["action"])  # the first episode, before weights could part
    assert torch.equal(0.5 * plain["reward"], scaled["reward"])
    told = next(csv.DictReader((tmp_path / "half" / "episodes.csv").open()))
    assert float(told["return"]) == pytest.approx(plain["reward"].sum().item())


def test_a_deterministic_policy_explores_with_noise(offline, slot, tmp_path):
    train(offline, tmp_path / "base")
    plain = train(online(offline, tmp_path / "base"), tmp_path / "plain", slot).source.replay.episodes
    noisy = train(online(offline, tmp_path / "base", noise=0.5), tmp_path / "noisy", slot).source.replay.episodes
    assert not torch.equal(plain[0]["action"], noisy[0]["action"])
    assert plain[0]["action"].shape[1] == noisy[0]["action"].shape[1]


def test_what_cannot_go_on_is_refused(offline, tmp_path):
    with pytest.raises(ConfigError, match="learns nothing from rewards"):
        dataclasses.replace(offline, agent=DM1(), online=OnlineConfig(base=str(tmp_path)))
    with pytest.raises(ConfigError, match="without a run to continue"):
        dataclasses.replace(offline, online=OnlineConfig(ratio=0.1))
    with pytest.raises(ConfigError, match="ratio"):
        OnlineConfig(ratio=1.5)
