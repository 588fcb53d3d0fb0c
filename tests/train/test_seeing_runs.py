"""Runs that see: a run that was killed and resumed equals the whole one bit for bit, crops of pictures included."""

import dataclasses
import shutil

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.agents.groups.making import Making
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.cli import main
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.files import read_json, write_tensors
from flowpolicy.core.spec import load_contract
from flowpolicy.data.dataset import DataConfig
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import make
from flowpolicy.nets.backbones import ResNet, SmallConv
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.vision import VisionEncoder
from flowpolicy.policy import Policy
from flowpolicy.train import Trainer
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.group_sources import open_request
from flowpolicy.train.online_source import OnlineConfig
from flowpolicy.train.verify import compare
from tests.conftest import DEVICES
from tests.pictures import CAMERAS, SPEC, observed, write_blobs

SEES = VisionEncoder(backbone=SmallConv(width=4, keypoints=4, feature=4), width=4, crop=0.8)
SMALL = {"net": MLP(width=8, depth=1), "encoder": SEES, "chunk": 3, "execute": 3, "history": 2}
ENV = dataclasses.replace(SPEC, observation={"state": SPEC.observation["state"]})


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_blobs(tmp_path / "blobs.hdf5")
    return Experiment(
        agent=DM1(**SMALL, noises=2),
        env="blobs",
        data=DataConfig(path=str(path), obs_keys=("state",), cameras=("front", "wrist"), accept=("unstated",)),
        steps=6,
        batch_size=8,
        checkpoint_every=1,
        keep_checkpoints=0,
        log_every=1,
        threads=1,
        compile="off",
        tensorboard=False,
    )


VALUE = {"net": Plain(width=8, depth=1), "encoder": SEES, "critic": CriticConfig(width=8, depth=1)}


@pytest.mark.parametrize("agent", [DM1(**SMALL, noises=2), FQL(**VALUE, chunk=2, execute=2, flow_steps=2)])
@pytest.mark.parametrize(("killed_at", "limit_mb"), [(1, 4096), (4, 0)])  # in memory, and mapped
@pytest.mark.parametrize("device", DEVICES)
def test_resume_with_crops_equals_the_uninterrupted_run_bit_for_bit(
    agent, killed_at, limit_mb, device, experiment, tmp_path
):
    data = dataclasses.replace(experiment.data, memory_limit_mb=limit_mb)
    experiment = dataclasses.replace(experiment, agent=agent, data=data, device=device)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Trainer(experiment, whole, ENV).train()
    shutil.copytree(whole, broken)
    for folder in (broken / "checkpoints").glob("step_*"):
        if int(folder.name.split("_")[1]) > killed_at:
            shutil.rmtree(folder)
    (broken / "checkpoints" / "LATEST").write_text(f"step_{killed_at:08d}\n")
    Trainer(experiment, broken, ENV, resume=True).train()
    compare(checkpoint.resolve(whole), checkpoint.resolve(broken))


MAP = {**VALUE, "net": MLP(width=8, depth=1)}
EVERY = {
    "fql": FQL(**VALUE, chunk=2, execute=2, flow_steps=2),
    "iql": IQL(**VALUE),
    "fisher": Fisher(**MAP),
    "flow": Flow(**SMALL, nfe=2),
    "flow shortcut": Flow(**SMALL, nfe=1, flow=FlowSpec(consistency=make("consistency", "shortcut"))),
    "flow data": Flow(**SMALL, nfe=2, flow=FlowSpec(target=make("target", "data"))),
}


@pytest.mark.parametrize("name", EVERY)
def test_twenty_updates_are_resumed_bit_for_bit_and_the_policy_acts(name, experiment, tmp_path):
    experiment = dataclasses.replace(experiment, agent=EVERY[name], steps=20, checkpoint_every=10)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Trainer(experiment, whole, ENV).train()
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step_00000020")
    (broken / "checkpoints" / "LATEST").write_text("step_00000010\n")
    Trainer(experiment, broken, ENV, resume=True).train()
    compare(checkpoint.resolve(whole), checkpoint.resolve(broken))
    policy = Policy.load(broken)
    seen = observed(2, history=policy.contract.history)
    chunk = policy.act(seen, torch.Generator().manual_seed(0))
    assert chunk.shape == (2, policy.contract.chunk, 2) and chunk.isfinite().all()


def test_what_keeps_no_pictures_says_so_and_what_to_do(experiment, tmp_path):
    run = Trainer(dataclasses.replace(experiment, agent=EVERY["flow"], steps=1), tmp_path / "run", ENV).train()
    with pytest.raises(ConfigError, match=r"sees pictures \(front_image, wrist_image\)[\s\S]*without --data\.cameras"):
        open_request(run, Making("returns", tmp_path / "groups.hdf5"))
    base = Trainer(dataclasses.replace(experiment, agent=EVERY["fql"], steps=1), tmp_path / "fql", ENV).train()
    online = dataclasses.replace(experiment, agent=EVERY["fql"], steps=30, online=OnlineConfig(base=str(base)))
    with pytest.raises(ConfigError, match=r"online training keeps no pictures[\s\S]*--data\.obs-keys"):
        Trainer(online, tmp_path / "online", ENV, slot=object())


def test_the_windows_of_pictures_decide_the_weights(experiment, tmp_path):
    changed = [SEES, dataclasses.replace(SEES, crop=1.0), dataclasses.replace(SEES, crop=1.0, shift=2)]
    weights = []
    for number, encoder in enumerate(changed):
        agent = dataclasses.replace(experiment.agent, encoder=encoder)
        run = Trainer(dataclasses.replace(experiment, agent=agent, steps=1), tmp_path / str(number), ENV).train()
        weights.append(read_json(run / "manifest.json")["weights.safetensors"])
    assert len(set(weights)) == 3


def test_a_run_says_what_it_sees_and_its_policy_acts(experiment, tmp_path):
    run = Trainer(dataclasses.replace(experiment, steps=1), tmp_path / "run", ENV).train()
    contract = load_contract(run / "contract.json")
    seen = contract.spec.images
    assert all(image.thumbnail for image in seen.values()), "by which swapped cameras are told"
    assert {key: dataclasses.replace(image, thumbnail="") for key, image in seen.items()} == SPEC.images
    assert tuple(contract.spec.observation) == ("state", *CAMERAS)
    policy = Policy.load(run)
    chunk = policy.act(observed(2, history=2), torch.Generator().manual_seed(0))
    assert chunk.shape == (2, 3, 2)
    wide = dataclasses.replace(contract.spec.images["front_image"], shape=(40, 36, 3))
    other = dataclasses.replace(SPEC, observation={**SPEC.observation, "front_image": wide})
    with pytest.raises(ContractError, match=r"observation front_image\.shape"):
        contract.require(other, "the environment", "")


def test_a_new_run_begins_with_the_weights_of_a_file_and_a_resumed_one_needs_it_no_more(experiment, tmp_path):
    backbone, path = ResNet(width=16, keypoints=4, feature=4), tmp_path / "resnet.safetensors"
    stem = backbone.build(36, 36)[0].state_dict()
    write_tensors(path, {name: torch.full_like(value, 0.25) for name, value in stem.items()})
    encoder = VisionEncoder(backbone=backbone, width=4, crop=1.0, weights=str(path))
    agent = Regression(**{**SMALL, "encoder": encoder})
    experiment = dataclasses.replace(experiment, agent=agent, steps=2)
    with pytest.warns(UserWarning, match="its BatchNorm is a GroupNorm here"):
        trainer = Trainer(experiment, tmp_path / "run", ENV)
    for weights in (trainer.agent.state_dict()["weights"], trainer.agent.state_dict()["ema"]):
        assert (weights["encoder.cameras.0.0.conv1.weight"] == 0.25).all()
    trainer.train()
    path.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000002")
    (tmp_path / "run" / "checkpoints" / "LATEST").write_text("step_00000001\n")
    Trainer(experiment, tmp_path / "run", ENV, resume=True).train()


def test_features_of_a_run_are_those_of_its_cameras_and_trunk(experiment, tmp_path, capsys):
    run = str(Trainer(dataclasses.replace(experiment, steps=1), tmp_path / "run", ENV).train().parents[1])
    many = write_blobs(tmp_path / "many.hdf5", lengths=(40, 50, 30))
    json, png = tmp_path / "found.json", tmp_path / "found.png"
    asked = ["features", run, "--data.path", str(many), "--rows", "80", "--json", str(json)]
    known = ["--object", "state", "--hand", "state", "--figure", str(png)]
    assert told(asked + known) == 0
    found = read_json(json)
    assert list(found["features"]) == [*CAMERAS, "trunk"] and not found["trained_on"] and found["pairs"] == 0
    eye = found["features"]["front_image"]
    assert eye["size"] == 2 * SEES.backbone.feature and eye["probe_mm"] > 0 and eye["confusable"] is None
    assert png.read_bytes().startswith(b"\x89PNG")
    assert told([*asked, "--overwrite"]) == 0  # the file has no 'object'
    assert read_json(json)["features"]["trunk"]["probe_mm"] is None
    assert "does not say where the object is" in capsys.readouterr().out
    for words, said in (
        (asked, "is there already"),
        (["features", run], "features of 2,048 rows; it has 33"),
        (["features", run, "--data.path", str(many), "--rows", "118"], "--rows 117"),
        ([*asked, "--overwrite", "--object", "stat"], "'stat' is none of its states"),
    ):
        assert told(words) == 2
        assert said in capsys.readouterr().err


def told(words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return stopped.value.code
