"""The loop stores, stops and resumes without losing a bit."""

import csv
import dataclasses
import shutil
import sys
import types

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.configs.presets import KINDS, PRESETS
from flowpolicy.core import checkpoint
from flowpolicy.core.config import decode
from flowpolicy.core.errors import ConfigError, ContractError, DataError, MissingExtraError, TrainingError
from flowpolicy.core.files import read_json, sha256, write_json
from flowpolicy.data.dataset import DataConfig
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.policy import Policy
from flowpolicy.train import Trainer
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.verify import compare


@pytest.fixture
def experiment(demonstrations):
    agent = DM1(net=MLP(width=16, depth=2), encoder=StateEncoder(width=8), chunk=3, execute=3)
    return Experiment(
        agent=agent,
        env="point",
        data=DataConfig(path=str(demonstrations)),
        steps=12,
        batch_size=8,
        checkpoint_every=5,
        keep_checkpoints=0,
        log_every=2,
        threads=1,
        compile=False,
        tensorboard=False,
    )


@pytest.fixture
def env(spec):
    return dataclasses.replace(spec, env_id="robosuite/Point")


@pytest.mark.quick("train")
def test_a_run_leaves_what_the_contract_promises(experiment, env, tmp_path):
    newest = Trainer(experiment, tmp_path / "run", env).train()
    assert newest.name == "step_00000012"
    names = {path.name for path in newest.iterdir()}
    assert names == {
        *("weights.safetensors", "ema.safetensors", "optim.safetensors", "normalizer.safetensors"),
        *("state.json", "config.json", "contract.json", "card.md", "manifest.json"),
    }
    config = read_json(newest / "config.json")
    assert decode(config["experiment"], KINDS) == experiment
    policy = Policy.load(tmp_path / "run")
    assert policy.contract.dataset_sha256 == read_json(newest / "contract.json")["dataset_sha256"]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert {"loss", "lr", "grad_norm", "data_ms", "update_ms", "log_ms", "dispersive"} <= set(rows[0])


@pytest.mark.parametrize("killed_at", [5, 10])
@pytest.mark.quick("exact resume")
def test_resume_equals_the_uninterrupted_run_bit_for_bit(killed_at, experiment, env, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Trainer(experiment, whole, env).train()
    shutil.copytree(whole, broken)
    for folder in (broken / "checkpoints").glob("step_*"):
        if int(folder.name.split("_")[1]) > killed_at:
            shutil.rmtree(folder)
    (broken / "checkpoints" / "LATEST").write_text(f"step_{killed_at:08d}\n")
    Trainer(experiment, broken, env, resume=True).train()
    compare(checkpoint.resolve(whole), checkpoint.resolve(broken))

    def metrics(run):
        timing = ("data_ms", "update_ms", "log_ms")
        rows = csv.DictReader((run / "metrics.csv").open())
        return [{k: v for k, v in row.items() if k not in timing} for row in rows]

    assert metrics(whole) == metrics(broken)


def test_compare_notices_a_single_bit(experiment, env, tmp_path):
    for name in ("a", "b"):
        Trainer(experiment, tmp_path / name, env).train()
    compare(checkpoint.resolve(tmp_path / "a"), checkpoint.resolve(tmp_path / "b"))
    Trainer(dataclasses.replace(experiment, seed=1), tmp_path / "c", env).train()
    with pytest.raises(TrainingError, match="differs"):
        compare(checkpoint.resolve(tmp_path / "a"), checkpoint.resolve(tmp_path / "c"))


DECISIVE = [
    ("seed", 1),
    ("batch_size", 7),
    ("steps", 13),
    ("data", {"filter_key": "train", "obs_keys": ("state",)}),
    ("normalizer", {"obs": "minmax"}),
    ("normalizer", {"action": "none"}),
    ("normalizer", {"limit": 0.5}),
]


def test_every_field_that_decides_weights_changes_them(experiment, env, tmp_path):
    changes = [
        {field: dataclasses.replace(getattr(experiment, field), **value) if isinstance(value, dict) else value}
        for field, value in DECISIVE
    ]
    runs = [
        Trainer(dataclasses.replace(experiment, **change), tmp_path / str(number), env).train()
        for number, change in enumerate([{}, *changes])
    ]
    plain, *others = (read_json(run / "manifest.json")["weights.safetensors"] for run in runs)
    assert not [field for field, weights in zip(DECISIVE, others, strict=True) if weights == plain]


def test_checkpoint_and_log_intervals_and_keep(experiment, env, tmp_path):
    changed = dataclasses.replace(experiment, checkpoint_every=4, keep_checkpoints=2, log_every=6)
    Trainer(changed, tmp_path, env).train()
    stored = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert stored == ["step_00000008", "step_00000012"]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


def test_tensorboard_events_are_written(experiment, env, tmp_path):
    Trainer(dataclasses.replace(experiment, tensorboard=True), tmp_path, env).train()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_wandb_is_sent_what_the_csv_holds_and_its_absence_names_the_extra(experiment, env, tmp_path, monkeypatch):
    sent, opened = [], []
    run = types.SimpleNamespace(log=lambda row, step: sent.append((step, row)), finish=lambda: sent.append("end"))
    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: opened.append(options) or run)
    )
    experiment = dataclasses.replace(experiment, wandb="project")
    Trainer(experiment, tmp_path / "run", env).train()
    assert opened[0]["project"] == "project" and opened[0]["id"] == "run"
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [step for step, _ in sent[:-1]] == [int(row["step"]) for row in rows] and sent[-1] == "end"
    assert set(sent[0][1]) == set(rows[0]) - {"step"}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"flowpolicy\[wandb\]"):
        Trainer(experiment, tmp_path / "other", env).train()


def test_a_second_run_does_not_overwrite_the_first(experiment, env, tmp_path):
    Trainer(experiment, tmp_path, env).train()
    with pytest.raises(ConfigError, match="already holds a run"):
        Trainer(experiment, tmp_path, env)


def test_a_changed_file_is_not_resumed_on(experiment, env, tmp_path, demonstrations):
    from ..conftest import write_demonstrations

    Trainer(experiment, tmp_path / "run", env).train()
    write_demonstrations(demonstrations, seed=3)
    with pytest.raises(DataError, match="has changed since"):
        Trainer(experiment, tmp_path / "run", env, resume=True)


def test_an_agent_that_lacks_what_a_training_asks_for_is_refused(experiment):
    agent = types.SimpleNamespace(needs="windows", history=1, chunk=2, execute=1, nfe=1, previous=False)
    with pytest.raises(ConfigError, match="SimpleNamespace has no horizon, build"):
        experiment.with_(agent=agent)


def test_a_run_from_before_every_source_had_a_state_goes_on(experiment, env, tmp_path):
    newest = Trainer(experiment, tmp_path / "run", env).train()
    state = read_json(newest / "state.json")
    assert state.pop("source")
    write_json(newest / "state.json", state)
    write_json(
        newest / "manifest.json", read_json(newest / "manifest.json") | {"state.json": sha256(newest / "state.json")}
    )
    assert Trainer(experiment, tmp_path / "run", env, resume=True).step == 12


def test_data_of_another_environment_is_refused(experiment, spec, tmp_path):
    with pytest.raises(ContractError, match="env_id: 'test/Point' against 'robosuite/Point'"):
        Trainer(experiment, tmp_path, spec)


def test_an_episode_shorter_than_a_chunk_is_refused_unless_it_is_accepted(experiment, env, tmp_path):
    agent = dataclasses.replace(experiment.agent, chunk=8)
    experiment = dataclasses.replace(experiment, agent=agent)
    with pytest.raises(DataError, match=r"demo_2 has 7 actions, fewer than a chunk of 8 \(1 of 3") as caught:
        Trainer(experiment, tmp_path / "run", env)
    assert "--data.short-episodes pad" in str(caught.value)
    data = dataclasses.replace(experiment.data, short_episodes="pad")
    Trainer(dataclasses.replace(experiment, data=data), tmp_path / "run", env).train()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(experiment, env, tmp_path):
    trainer = Trainer(experiment, tmp_path, env)
    update = trainer.agent.update
    calls = iter(range(1, 100))

    def poisoned(batch, generator):
        metrics = update(batch, generator)
        return {**metrics, "loss": torch.tensor(float("nan"))} if next(calls) > 7 else metrics

    trainer.agent.update = poisoned
    with pytest.raises(TrainingError, match="loss of update 8 is not finite"):
        trainer.train()
    assert checkpoint.resolve(tmp_path).name == "step_00000005"


@pytest.fixture
def offline(experiment):
    agent = FQL(net=Plain(width=16, depth=2), critic=CriticConfig(width=16, depth=2), ema=0.9)
    return dataclasses.replace(experiment, agent=agent)


def test_a_critic_that_is_not_finite_is_named_with_its_update(offline, env, tmp_path):
    """Noticed when the row of update 12 is written, and named as the ninth."""
    trainer = Trainer(dataclasses.replace(offline, log_every=6), tmp_path, env)
    update = trainer.agent.update

    def poisoned(batch, generator):
        if trainer.step == 8:
            with torch.no_grad():
                trainer.agent.critic.head.bias[0] = float("nan")
        return update(batch, generator)

    trainer.agent.update = poisoned
    with pytest.raises(TrainingError, match=r"critic_loss.* of update 9 is not finite"):
        trainer.train()
    assert checkpoint.resolve(tmp_path).name == "step_00000005"


def test_weights_that_are_not_finite_are_not_stored(offline, env, tmp_path):
    trainer = Trainer(dataclasses.replace(offline, checkpoint_every=4), tmp_path, env)
    follow = trainer.agent.follow

    def poisoned():
        if trainer.step == 7:
            with torch.no_grad():
                next(trainer.agent.actor.parameters())[0] = float("inf")
        follow()

    trainer.agent.follow = poisoned
    with pytest.raises(TrainingError, match=r"net.trunk.layers.0.* of update 8 is not finite"):
        trainer.train()
    assert checkpoint.resolve(tmp_path).name == "step_00000004"


@pytest.mark.parametrize("killed_at", [5, 10])
def test_value_learning_resumes_bit_for_bit(killed_at, offline, env, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Trainer(offline, whole, env).train()
    stored = {path.name for path in checkpoint.resolve(whole).glob("*.safetensors")}
    assert stored == {f"{name}.safetensors" for name in ("weights", "ema", "optim", "normalizer", "training")}
    shutil.copytree(whole, broken)
    for folder in (broken / "checkpoints").glob("step_*"):
        if int(folder.name.split("_")[1]) > killed_at:
            shutil.rmtree(folder)
    (broken / "checkpoints" / "LATEST").write_text(f"step_{killed_at:08d}\n")
    Trainer(offline, broken, env, resume=True).train()
    compare(checkpoint.resolve(whole), checkpoint.resolve(broken))


@pytest.mark.parametrize("field", ["steps", "batch_size", "checkpoint_every", "log_every", "threads"])
def test_numbers_below_one_are_refused(field):
    with pytest.raises(ConfigError, match=field.replace("_", "-")):
        dataclasses.replace(PRESETS["debug"][1], **{field: 0})


def test_bfloat16_is_recorded_and_resumed_bit_for_bit(experiment, env, tmp_path):
    experiment, whole, broken = dataclasses.replace(experiment, precision="bf16"), tmp_path / "whole", tmp_path / "cut"
    with pytest.warns(UserWarning, match="what cannot be in it stays float32: the forward derivative"):
        newest = Trainer(experiment, whole, env).train()
    assert read_json(newest / "config.json")["experiment"]["precision"] == "bf16"
    shutil.copytree(whole, broken)
    for folder in (broken / "checkpoints").glob("step_*"):
        if int(folder.name.split("_")[1]) > 5:
            shutil.rmtree(folder)
    (broken / "checkpoints" / "LATEST").write_text("step_00000005\n")
    Trainer(experiment, broken, env, resume=True).train()
    compare(checkpoint.resolve(whole), checkpoint.resolve(broken))


def test_a_precision_that_this_device_lacks_is_told(experiment, env, tmp_path):
    experiment = dataclasses.replace(experiment, precision="tf32")
    with pytest.warns(UserWarning, match="--precision tf32 changes nothing here: cpu has no such numbers"):
        assert Trainer(experiment, tmp_path / "run", env).precision == "fp32"


def test_updates_are_captured_on_a_gpu_alone(experiment, env, tmp_path):
    with pytest.raises(ConfigError, match="--capture on cpu"):
        Trainer(dataclasses.replace(experiment, capture=True), tmp_path / "run", env)
