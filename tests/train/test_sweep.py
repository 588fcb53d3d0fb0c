"""Numbers of agents that differ in one company: every run is the one that its own command line would have trained."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.commands import train as command
from flowpolicy.configs import presets
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_tensors
from flowpolicy.evaluate import curves
from flowpolicy.evaluate.records import identity
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.policy import Policy
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.run import Run
from flowpolicy.train.sweep import members
from flowpolicy.train.training import train

from ..conftest import unchecked

VALUE = {"critic": CriticConfig(width=8, depth=1)}
SMALL = {
    "fql": FQL(net=Plain(width=8, depth=1), flow_steps=2, **VALUE),
    "iql": IQL(net=Plain(width=8, depth=1), **VALUE),
    "fisher": Fisher(net=MLP(width=8, depth=1), **VALUE),
    "dm1": DM1(net=MLP(width=8, depth=1), encoder=StateEncoder(width=4), chunk=2, execute=2),
}
SWEPT = [
    ("fql", "agent.alpha=1,30.5", "alpha", 30.5),
    ("iql", "agent.expectile=.6,.9", "expectile", 0.9),
    ("fisher", "agent.budget=0.01,0.2", "budget", 0.2),
    ("dm1", "agent.optimizer.lr=1e-4,3e-3", "optimizer.lr", 3e-3),
    ("iql", "agent.*optimizer.lr=1e-4,3e-3", "critic_optimizer.lr", 3e-3),
]


def experiment(agent, **changes):
    return Experiment(
        SMALL[agent], "toy", steps=4, batch_size=8, log_every=1, compile="off", tensorboard=False, **changes
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy's demonstrations, made by a run of one update."""
    with unchecked():
        run = train(dataclasses.replace(experiment("fql"), steps=1), tmp_path_factory.mktemp("toy"), progress=False)
    return run.experiment.data


def value(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("agent", "word", "path", "last"), SWEPT)
def test_every_run_of_a_sweep_is_the_run_of_its_value(agent, word, path, last, toy, tmp_path, monkeypatch):
    """Weights, moments, metrics, record and policy, from the words of the command line."""
    base = experiment(agent, data=toy)
    monkeypatch.setitem(presets.PRESETS, f"{agent}-small", ("", base))
    monkeypatch.setattr(curves, "draw_curves", lambda *arguments: None)  # a second each
    monkeypatch.chdir(tmp_path)
    with unchecked():
        command.run([f"{agent}-small", "--out", "run", "--sweep", word])
        label, text = path.rpartition(".")[2].replace("_", "-"), word.rpartition(",")[2]
        made = Run.load(tmp_path / f"run-{label}-{text}-seed0")
        single = members(base, [f"{word.partition('=')[0]}={text}"])[0].experiment
        alone = train(single, tmp_path / "alone", progress=False)
        others = sorted(place.name for place in tmp_path.glob("run-*"))
    assert len(others) == 2 and value(made.experiment.agent, path) == last
    assert made.experiment == alone.experiment and made.contract == alone.contract
    for file in sorted(alone.checkpoint.glob("*.safetensors")):
        found, expected = (read_tensors(run.checkpoint / file.name) for run in (made, alone))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)
    assert identity(Policy.load(made.path) and made.checkpoint).step == 4
    assert (made.path / "metrics.csv").read_text().count("\n") == 5


def test_a_grid_has_every_combination_with_every_seed_and_ordinary_folders():
    found = members(experiment("iql", seed=3), ["agent.expectile=0.7,0.9", "--agent.tau=0.1,0.2"], seeds=2)
    assert len({member.label for member in found}) == 8
    assert found[0].label == "-expectile-0.7-tau-0.1-seed3" and found[-1].label == "-expectile-0.9-tau-0.2-seed4"
    assert {(m.experiment.agent.expectile, m.experiment.agent.tau, m.experiment.seed) for m in found} == {
        (expectile, tau, seed) for expectile in (0.7, 0.9) for tau in (0.1, 0.2) for seed in (3, 4)
    }
    assert [m.label for m in members(experiment("iql"), [], 2)] == ["-seed0", "-seed1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["agent.expektile=0.7"], "the agent has no number 'agent.expektile'"),
        (["agent.flow_steps=2,3"], "the agent has no number"),
        (["agent.expectile"], "--sweep agent.expectile"),
        (["agent.expectile="], "--sweep agent.expectile="),
        (["agent.expectile=0.7,high"], "numbers, with commas"),
        (["agent.expectile=0.7,0.70"], "names a value twice"),
        (["agent.expectile=0.7", "agent.expectile=0.8"], "names a number twice"),
        (["agent.expectile=1.5"], "--agent.expectile"),
        (["agent.expectile=nan"], "--agent.expectile"),
    ],
)
def test_what_cannot_be_swept_is_refused(words, said):
    with pytest.raises(ConfigError) as error:
        members(experiment("iql"), words)
    assert said in str(error.value)
