"""The comparison with a peer: same shapes and settings on both sides, and clear words where it cannot run.

The peer here is a stand-in with the interface of the public implementation; `flowpolicy bench` runs the real one.
"""

import dataclasses
import json
import sys

import pytest

from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.bench import peer
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.plain import Plain

SPEC = Spec({"a": ObservationSpec((3,)), "b": ObservationSpec((2,))}, ActionSpec(2))
CONFIG = FQL(net=Plain(width=16, depth=2), critic=CriticConfig(width=8, depth=1, aggregate="min"), alpha=7.0)
AGENT = """
import json

def get_config():
    return {}

class FQLAgent:
    def create(seed, observations, actions, config):
        with open("seen.json", "w") as file:
            json.dump([observations.shape, actions.shape, config], file)
        return FQLAgent()

    def update(self, batch):
        print("a line of the peer's own")
        return self, {}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "fql.py").write_text(AGENT)
    (tmp_path / "jax.py").write_text("def block_until_ready(value):\n    return value\n")
    return tmp_path


@pytest.fixture
def eager(monkeypatch):
    built = peer.make_agent

    def make(config, **sizes):
        agent = built(config, **sizes)
        agent._loss = agent.loss
        return agent

    monkeypatch.setattr(peer, "make_agent", make)


def test_both_sides_do_the_same_work(folder, eager):
    result = peer.bench_peer(CONFIG, SPEC, folder, sys.executable, threads=1, rounds=3, calls=2)
    obs, action, config = json.loads((folder / "seen.json").read_text())
    assert (obs, action) == ([256, 5], [256, 2])
    assert config["actor_hidden_dims"] == [16, 16] and config["value_hidden_dims"] == [8]
    assert (config["alpha"], config["q_agg"], config["flow_steps"], config["lr"]) == (7.0, "min", 10, 3e-4)
    assert result["ratio"].keys() == {"median", "low", "high"}
    assert 0 < result["ratio"]["median"] < 1, "a peer that does nothing is faster"


def test_a_peer_that_stops_is_an_error(folder, eager):
    (folder / "agents" / "fql.py").write_text("import there_is_no_such_package\n")
    with pytest.raises(TrainingError, match="stopped with exit code 1"):
        peer.bench_peer(CONFIG, SPEC, folder, sys.executable, threads=1, rounds=1, calls=1)


@pytest.mark.parametrize("config", [IQL(), dataclasses.replace(CONFIG, chunk=2), FQL(solver="midpoint")])
def test_what_the_peer_cannot_do_is_refused(config):
    with pytest.raises(ConfigError, match="cannot run this preset"):
        peer.peer_settings(config, SPEC, 1)


def test_the_size_of_all_networks_can_be_chosen():
    config = peer.resized(CONFIG, 32, 3)
    assert (config.net, config.critic) == (Plain(32, 3), CriticConfig(width=32, depth=3, aggregate="min"))
    assert peer.resized(IQL(), 32, 3) == IQL()


def test_a_folder_without_the_peer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no agents/fql\.py"):
        peer.bench_peer(CONFIG, SPEC, tmp_path)
