"""Code of others as an arm of a suite; here a stand-in with the interface of the published ones, without jax."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.cli import main
from flowpolicy.commands.suite import run_suite
from flowpolicy.configs.preset_table import find_preset
from flowpolicy.configs.suites import PEER_ARMS, SUITES, Arm, Suite
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.evaluate.report import load_evaluation
from flowpolicy.lab import suite_jobs
from flowpolicy.lab.peer_run import evaluate_peer, find_checkout, train_peer
from flowpolicy.lab.suite_jobs import plan_jobs, with_added

UNSCALED = ("--normalizer.obs", "none", "--normalizer.action", "none")
JAX = """
from types import SimpleNamespace
block_until_ready = lambda value: value
tree_util = SimpleNamespace(
    tree_leaves=lambda tree: list(tree.values()),
    tree_flatten=lambda tree: (list(tree.values()), list(tree)),
    tree_unflatten=lambda tree, leaves: dict(zip(tree, leaves)),
)
random = SimpleNamespace(PRNGKey=lambda seed: seed)
"""
DATASETS = """
import numpy as np
class Dataset(dict):
    @classmethod
    def create(cls, **columns):
        assert len({len(column) for column in columns.values()}) == 1 and columns["terminals"][-1] == 1
        return cls(columns)
    def sample(self, rows):
        index = np.random.randint(len(self["rewards"]), size=rows)
        return {name: column[index] for name, column in self.items()}
"""
AGENT = """
import json
import numpy as np

class Network:
    def __init__(self, params):
        self.params = params
    def replace(self, params):
        return Network(params)

class FQLAgent:
    def __init__(self, network, updates=0):
        self.network, self.updates = network, updates
    @staticmethod
    def create(seed, observations, actions, config):
        print("words of its own")
        size = observations.shape[1], actions.shape[1]
        return FQLAgent(Network({"w": np.zeros(size, np.float32), "seen": np.zeros(4, np.float32)}))
    def replace(self, network):
        return FQLAgent(network)
    def update(self, batch):
        if self.updates == CRASH:
            raise RuntimeError("out of luck")
        gap = batch["actions"] - batch["observations"] @ self.network.params["w"]
        step = batch["observations"].T @ gap / len(gap)
        seen = np.array([abs(batch["actions"]).max(), *batch["masks"].shape, batch["rewards"].size, 1])
        params = {"w": self.network.params["w"] + 0.1 * step, "seen": seen.astype(np.float32)}
        return FQLAgent(Network(params), self.updates + 1), {}
    def sample_actions(self, observations, seed):
        noise = np.random.default_rng(seed).standard_normal(self.network.params["w"].shape[1])
        return np.clip(observations @ self.network.params["w"] + 0.01 * noise, -1, 1)

def get_config():
    return {}
"""


@pytest.fixture
def peer(tmp_path):
    folder = tmp_path / "peer"
    for name, text in (("jax.py", JAX), ("utils/datasets.py", DATASETS), ("agents/fql.py", "CRASH = -1\n" + AGENT)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Commands of a suite run in this process: starting another one costs seconds."""

    def run(words, log):
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        return not stop.value.code

    monkeypatch.setattr(suite_jobs, "run_tied", run)


def toy(**changes):
    return find_preset("fql-toy")[1].with_(normalizer={"obs": "none", "action": "none"}, steps=30, **changes)


def test_a_suite_trains_plays_and_tabulates_a_peer_beside_ours(peer, here, tmp_path, monkeypatch, capsys):
    small = Suite("", {"fql": Arm("fql")}, {"toy": 6}, (*UNSCALED, "--steps", "20"), seeds=1, episodes=3)
    monkeypatch.setitem(SUITES, "small", small)
    peers = {"arms": ("fql-official",), "peer": (f"fql={peer}",), "peer_python": sys.executable}
    run_suite("small", data=tmp_path / "data", out=tmp_path / "runs", **peers)
    told = capsys.readouterr()
    assert "fql-official" in told.out and "words of its own" not in told.out
    record = load_evaluation(tmp_path / "runs/records/toy/fql-official-seed0.json")
    assert (record.step, record.nfe, len(record.episodes)) == (20, 1, 3)
    stated = record.training["peer"]
    assert stated["repository"] == "github.com/seohongpark/fql" and stated["config"]["alpha"] == 1.0
    assert record.training["experiment"]["batch_size"] == 64 and len(record.training["dataset_sha256"]) == 64
    home = tmp_path / "runs/toy/fql-official-seed0/peer"
    assert sorted(path.name for path in home.iterdir()) == [
        *("contract.json", "parameters.npz", "peer.json", "record.json", "trained.json"),
    ]
    main_table = ["suite", "table", "small", "--records", str(tmp_path / "runs/records")]
    with pytest.raises(SystemExit) as stop:
        main(main_table)
    assert stop.value.code == 0 and "fql-official" in capsys.readouterr().out
    # Later commands know the arm, and do not run it where nobody says where it lies.
    suite = with_added(small, tmp_path / "runs/records")
    assert suite.arms["fql-official"] == PEER_ARMS["fql"]
    assert {job.arm for job in plan_jobs(suite, tmp_path, tmp_path, tmp_path)} == {"fql"}
    with pytest.raises(ConfigError, match="the code of others"):
        plan_jobs(suite, tmp_path, tmp_path, tmp_path, arms=["fql-official"])


def test_the_same_seed_makes_the_same_peer_and_the_same_episodes(peer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths are typed from there, and the peer works elsewhere
    Path("python").symlink_to(sys.executable)
    checkout = find_checkout("fql=peer", "./python")
    for name in ("a", "b"):
        train_peer(checkout, toy(seed=3), Path(name), progress=False)
        train_peer(checkout, toy(seed=3), Path(name), progress=False)  # is trained already
    found = [evaluate_peer(Path(name), episodes=2, seed=0) for name in ("a", "b")]
    assert found[0].weights_sha256 == found[1].weights_sha256
    assert [e.return_ for e in found[0].episodes] == [e.return_ for e in found[1].episodes]
    with np.load(tmp_path / "a" / "peer" / "parameters.npz") as file:
        largest, rows, rewards, _ = file["leaf0001"]
    assert (rows, rewards) == (64, 64) and largest < 1, "actions are clipped as the peers' own loaders do"
    with pytest.raises(ConfigError, match="trained otherwise"):
        train_peer(checkout, toy(seed=4), tmp_path / "a", progress=False)


def test_what_goes_wrong_is_one_sentence_and_keeps_nothing_half_done(peer, tmp_path):
    checkout = find_checkout(f"fql={peer}")
    agent = peer / "agents" / "fql.py"
    agent.write_text("CRASH = 15\n" + AGENT)
    with pytest.raises(TrainingError, match="stopped with exit code 1 after 15 updates"):
        train_peer(checkout, toy(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run/peer/parameters.npz").exists() and not (tmp_path / "run/peer/transitions.npz").exists()
    with pytest.raises(ConfigError, match="holds no trained peer"):
        evaluate_peer(tmp_path / "run", episodes=1, seed=0)
    agent.write_text("import there_is_no_such_package\n")
    with pytest.raises(ConfigError, match="No module named 'there_is_no_such_package'") as error:
        train_peer(checkout, toy(), tmp_path / "run", progress=False)
    assert "peer-requirements.txt" in str(error.value)
    with pytest.raises(ConfigError, match="scales neither"):
        train_peer(checkout, find_preset("fql-toy")[1], tmp_path / "other", progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fql", "expected: NAME=PATH"),
        ("fqll=.", "no peer is called 'fqll'"),
        ("fql=nowhere", "a checkout of github.com/seohongpark/fql"),
        ("fisher=.", "a checkout of github.com/ARC0127/Fisher-Decorator"),
    ],
)
def test_a_wrong_peer_is_refused_before_anything_is_done(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_suite("debug", data=tmp_path / "data", out=tmp_path / "runs", peer=(text,))
    assert not (tmp_path / "runs").exists()


def test_the_released_fisher_decorator_gets_the_values_of_its_scripts():
    from flowpolicy.commands.train import parse
    from flowpolicy.lab.peer_run import PEERS

    base = find_preset("fisher-cube-single")[1]
    options = PEERS["fisher"].options(parse(base, PEER_ARMS["fisher"].flags, "train", "").agent)
    assert (options["fisher_t"], options["num_fisher_samples"], options["fisher_damping"]) == (0.9, 8, 1e-3)
    assert (options["target_divergence"], options["alpha"], options["flow_steps"]) == (0.001, 10.0, 10)
    assert options["normalize_q_loss"] and options["use_lagrange"] and json.dumps(options)
    with pytest.raises(ConfigError, match="as it was released"):
        PEERS["fisher"].options(base.agent)
