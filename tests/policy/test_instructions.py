"""A policy that was trained on a bag of instructions follows one of them wherever it acts, and refuses all others."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowpolicy.bench.latency_worker import engine_calls
from flowpolicy.cli import main
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.errors import ConfigError, DataError, ServingError
from flowpolicy.core.spec import Contract
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.evaluate.evaluation import evaluate
from flowpolicy.evaluate.report import load_evaluation
from flowpolicy.evaluate.tables import unlike
from flowpolicy.policy import Policy, load_engine
from flowpolicy.policy.exporting import export
from flowpolicy.policy.session import Session
from flowpolicy.serve.model import Model
from flowpolicy.train.training import train
from tests.serve.conftest import serving

WORDS = ("push the cube", "lift the cube")


def trained(home: Path, words: tuple[str, ...], **agent) -> Path:
    """A run on demonstrations of the toy whose episodes follow these instructions in turn."""
    make_demonstrations("toy", home / "toy.hdf5", episodes=4, seed=0, quality="expert", workers=1)
    with h5py.File(home / "toy.hdf5", "r+") as file:
        for number, (name, demo) in enumerate(sorted(file["data"].items())):
            if number % 2:
                demo.attrs["instruction"] = words[number % len(words)]
            else:  # as robosuite and `robot record` say it
                demo.attrs["ep_meta"] = f'{{"lang": "{words[number % len(words)]}"}}'
            assert name.startswith("demo_")
    keys = (*load_dataset(home / "toy.hdf5").spec.observation, "instruction")
    data = {"path": str(home / "toy.hdf5"), "obs_keys": keys}
    experiment = PRESETS["debug"][1].with_(data=data, steps=3, batch_size=8, tensorboard=False, agent=agent)
    train(experiment, home / "run", progress=False)
    return home / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bag"), WORDS)


def seen(contract: Contract) -> dict[str, np.ndarray]:
    shapes = {key: each.shape for key, each in contract.spec.observation.items() if not each.words}
    return {key: np.full(shape, 0.3, np.float32) for key, shape in shapes.items()}


def test_an_evaluation_follows_one_instruction_and_its_record_says_which(run, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"follows 2 instructions, and none is given\n.*'push the cube', 'lift the"):
        evaluate(run, episodes=2, progress=False)
    with pytest.raises(ConfigError, match=r"'lift a cube'\n  expected: one of 'lift the cube', 'push the cube'"):
        evaluate(run, episodes=2, progress=False, instruction="lift a cube")
    found = [evaluate(run, episodes=2, progress=False, instruction=text) for text in WORDS]
    assert [one.instruction for one in found] == list(WORDS)
    assert len(list((run / "eval").glob("*.json"))) == 2
    assert unlike(*found)[0] == "Not the same instruction: 'push the cube' and 'lift the cube'."
    out = tmp_path / "record.json"
    with pytest.raises(SystemExit) as ended:
        main(("eval", str(run), "--episodes", "2", "--instruction", WORDS[1], "--json", str(out)))
    assert ended.value.code == 0
    again = load_evaluation(out)
    assert (again.instruction, again.return_) == (WORDS[1], found[1].return_)
    assert "lift the cube" in capsys.readouterr().out


def test_the_only_instruction_of_a_policy_is_followed_unless_another_one_is_asked_for(tmp_path):
    alone = trained(tmp_path, ("lift the cube",))
    assert evaluate(alone, episodes=2, progress=False).instruction == "lift the cube"
    session = Session(Policy.load(alone))
    assert session.instruction == "lift the cube"
    assert np.isfinite(session.act(seen(session.contract))).all()
    with pytest.raises(ConfigError, match="knows no instruction 'push the cube'"):
        Session(Policy.load(alone), instruction="push the cube")


def test_exported_packages_follow_it_too(run, tmp_path):
    policy = Policy.load(run)
    policies = {"eager": policy, "run": load_engine(run, "numpy")}
    for name in ("numpy", "onnx"):
        if name == "onnx":
            pytest.importorskip("onnxscript")
            pytest.importorskip("onnxruntime")
        export(policy, name, tmp_path / name, batches=(1,))
        policies[name] = load_engine(tmp_path / name, name)
    for text in WORDS:
        chunks = []
        for acting in policies.values():
            session = Session(acting, noise_scale=0.0, instruction=text)
            chunks.append(session.act(seen(session.contract)))
        for chunk in chunks[1:]:
            np.testing.assert_allclose(chunk, chunks[0], atol=1e-4)
    for engine in ("eager", "numpy"):  # what `bench latency` times
        settings = {"path": str(run), "engine": engine, "batches": [2], "threads": 1, "nfe": None}
        assert np.isfinite(engine_calls(settings)[2]()).all()


def test_requests_to_a_server_say_it_or_the_server_was_told(run):
    engine = load_engine(run, "eager")
    obs = {key: value[None] for key, value in seen(engine.contract).items()}
    with serving(Model.prepare((engine,), "step_3", (1,), rounds=1)) as server, server.client() as client:
        still = np.zeros((1, engine.contract.chunk, 2), np.float32)
        by_text = [client.act(obs, 9e3, noise=still, instruction=text) for text in WORDS]
        told = obs | {"instruction": np.eye(2, dtype=np.float32)[None, 1]}
        by_number = client.act(told, 9e3, noise=still)
        assert np.array_equal(by_number.chunk, by_text[1].chunk)
        assert not np.array_equal(by_text[0].chunk, by_text[1].chunk)
        for asked, words in (
            ({}, "follows 2 instructions, and none is given"),
            ({"instruction": "lift a cube"}, "knows no instruction 'lift a cube'"),
        ):
            with pytest.raises(ServingError, match=words) as refused:
                client.act(obs, 9e3, **asked)
            assert refused.value.code == "instruction"
        with pytest.raises(ServingError, match="a text, and the observation instruction"):
            client.act(told, 9e3, instruction=WORDS[0])
        with pytest.raises(ServingError, match="is no instruction"):
            client.act(obs | {"instruction": np.full((1, 2), 0.5, np.float32)}, 9e3)
    model = Model.prepare((engine,), "step_3", (1,), rounds=1, instruction=WORDS[1])
    with serving(model) as server, server.client() as client:
        usual = client.act(obs, 9e3, noise=still)
        assert np.array_equal(usual.chunk, by_text[1].chunk)
        assert client.hello["instruction"] == WORDS[1]
    with pytest.raises(ConfigError, match="knows no instruction"):
        Model.prepare((engine,), "step_3", (1,), rounds=1, instruction="dance")


def test_an_episode_without_a_text_is_named_and_other_names_of_the_text_are_read(run):
    path = run.parent / "toy.hdf5"
    assert load_dataset(DataConfig(str(path), obs_keys=("instruction",))).instructions == WORDS
    with h5py.File(path, "r") as file, h5py.File(run.parent / "less.hdf5", "w") as less:
        file.copy("data", less)
        del less["data/demo_1"].attrs["instruction"]
    with pytest.raises(DataError, match="data/demo_1 has no instruction"):
        load_dataset(DataConfig(str(run.parent / "less.hdf5"), obs_keys=("position", "instruction")))
    contract = Policy.load(run).contract
    robot = dataclasses.replace(contract.spec, observation={"position": contract.spec.observation["position"]})
    assert contract.require(robot, "the robot", "") == []  # nothing measures an instruction
