"""What --compile auto decides, that a run keeps it, and which operators it then computes with."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.commands.train import compile_words
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.files import read_json, write_json
from flowpolicy.train import compiling
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.loop import Trainer
from flowpolicy.train.run import Run
from flowpolicy.train.training import train

FROM = DM1.compile_from


@pytest.mark.parametrize(
    ("agent", "steps", "asked", "chosen", "said"),
    [
        (
            DM1(),
            FROM - 1,
            "auto",
            "off",
            f"off, because it pays for DM1 from {FROM:,} updates on",
        ),
        (DM1(), FROM, "auto", "on", f"on, because {FROM:,} updates are planned"),
        (Regression(), 10**6, "auto", "off", "off, because it never pays for Regression"),
        (Regression(), 10, "on", "on", "on, as asked"),
        (DM1(), 10**6, "off", "off", "off, as asked"),
        (DM1(), 10**6, False, "off", "off, as asked"),
        (DM1(), 10, True, "on", "on, as asked"),
    ],
)
def test_the_planned_updates_decide_unless_it_is_asked_for(agent, steps, asked, chosen, said, monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    experiment = Experiment(agent=agent, env="toy", steps=steps, compile=asked)
    assert compiling.decided(experiment).compile == chosen
    assert said in compiling.told(experiment)


def test_a_gpu_compiles_and_a_machine_without_compiler_does_not(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    experiment = Experiment(agent=DM1(), env="toy", steps=10**6)
    assert compiling.decided(experiment).compile == "off" and "no C++ compiler" in compiling.told(experiment)
    short = dataclasses.replace(experiment, steps=10, device="cuda")
    assert compiling.decided(short).compile == "on" and "CUDA device" in compiling.told(short)


def test_the_words_of_before():
    assert compile_words(["--steps", "3", "--no-compile"]) == ["--steps", "3", "--compile", "off"]
    assert compile_words(["--compile", "--steps", "3"]) == ["--compile", "on", "--steps", "3"]
    assert compile_words(["--compile"]) == ["--compile", "on"]
    assert compile_words(["--compile", "auto", "--compile=off"]) == ["--compile", "auto", "--compile=off"]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    experiment = PRESETS["debug"][1].with_(steps=4, checkpoint_every=2, tensorboard=False, keep_checkpoints=0)
    return train(dataclasses.replace(experiment, compile="auto"), tmp_path_factory.mktemp("short") / "run")


def test_a_run_keeps_what_was_decided(short):
    assert short.experiment.compile == "off"
    assert read_json(short.checkpoint / "config.json")["experiment"]["compile"] == "off"


@pytest.mark.parametrize(("stored", "means"), [(True, "on"), (False, "parts")])
def test_runs_from_before_the_choice_go_on_as_they_began(short, tmp_path, stored, means):
    folder = short.policy().save(tmp_path, step=2, config=read_json(short.checkpoint / "config.json"))
    config = read_json(short.checkpoint / "config.json")
    config["experiment"]["compile"] = stored
    write_json(folder / "config.json", config)
    assert Run(tmp_path, folder).experiment.compile == means


def test_torchs_own_operators_are_used_where_nothing_is_compiled(short, tmp_path):
    """The same first update to round-off, and not the same bits."""
    weights = {}
    for choice in ("off", "parts"):
        experiment = dataclasses.replace(short.experiment, compile=choice, steps=1)
        trainer = Trainer(experiment, tmp_path / choice)
        trainer.train()
        weights[choice] = torch.cat([value.flatten() for value in trainer.agent.state_dict()["weights"].values()])
    torch.testing.assert_close(weights["off"], weights["parts"], rtol=1e-3, atol=1e-4)
    assert not torch.equal(weights["off"], weights["parts"])
