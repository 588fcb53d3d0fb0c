"""``import flowpolicy``: its names, what importing costs, and the programs of docs/python.md."""

import contextlib
import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flowpolicy as fp
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig
from flowpolicy.envs.demonstrators import make_demonstrations

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def alone(code, **environment):
    """Output of a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_costs_nothing():
    heavy = "{'torch', 'numpy', 'rich', 'tyro', 'h5py', 'inspect', 'flowpolicy.core'} & set(sys.modules)"
    assert alone(f"import sys, flowpolicy; print({heavy} or 'nothing')") == "nothing\n"


def test_every_name_is_there_and_has_one_meaning_in_whatever_order_rooms_are_imported():
    assert set(fp.__all__) == set(dir(fp))
    assert all(getattr(fp, name) is not None for name in fp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fp.trian
    import flowpolicy.evaluate.rollout
    import flowpolicy.train.loop
    from flowpolicy.configs.named_training import train
    from flowpolicy.evaluate.evaluation import evaluate

    assert inspect.signature(fp.train) == inspect.signature(train)
    assert inspect.signature(fp.evaluate) == inspect.signature(evaluate)
    assert fp.train.Trainer is flowpolicy.train.loop.Trainer


def test_a_preset_is_found_by_its_name():
    assert fp.presets["dm1-lift"].env == "lift" and "dm1-lift" in fp.presets and len(fp.presets) == len([*fp.presets])
    found = fp.presets.find("DM1", "can")
    assert found[:2] == ["dm1-can", "dm1-can-image"] and set(found[2:]) == {
        f"dm1-can-{kind}{sight}" for kind in ("ph", "mh") for sight in ("", "-image")
    }
    assert "dm1-door" in repr(fp.presets)
    with pytest.raises(ConfigError, match="did you mean 'dm1-lift'"):
        fp.presets["dm1-lfit"]


def test_an_experiment_with_other_values():
    lift = fp.presets["dm1-lift"]
    changed = lift.with_(data=Path("lift.hdf5"), steps=7, agent={"chunk": 8, "net": {"width": 32}})
    assert (changed.data.path, changed.data.obs_keys, changed.steps) == ("lift.hdf5", lift.data.obs_keys, 7)
    assert (changed.agent.chunk, changed.agent.net.width, changed.agent.net.depth) == (8, 32, lift.agent.net.depth)
    assert lift.with_(data=DataConfig(path="x")).data == DataConfig(path="x")
    with pytest.raises(ConfigError, match="MLP has no option 'widht'.*did you mean 'width'".replace(".*", r"[\s\S]*")):
        lift.with_(agent={"net": {"widht": 1}})
    with pytest.raises(ConfigError, match="--steps is 0"):
        lift.with_(steps=0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A file of the toy, and a run that was trained as a notebook user types it."""
    home = tmp_path_factory.mktemp("toy")
    with contextlib.chdir(home):
        make_demonstrations("toy", Path("toy.hdf5"), episodes=30, seed=0, quality="expert", workers=1)
        data = fp.load_dataset("toy.hdf5")
        run = fp.train("debug", data=data, steps=3, batch_size=8, tensorboard=False, progress=False)
    return home, data, run


def test_what_a_notebook_user_types(toy, monkeypatch):
    home, data, run = toy
    monkeypatch.chdir(home)
    assert (run.step, str(run.path), run.contract.dataset_sha256) == (3, "runs/debug-seed0", data.sha256)
    result = fp.evaluate(run, episodes=3, seed=1, progress=False)
    policy, env = fp.load_policy(run), fp.make_env(run)
    played = []
    for number, seed in enumerate(result.plan.policy_seeds):
        obs, info = env.reset(seed=1) if number == 0 else env.reset()
        session, steps, over = fp.Session(policy, seed=seed), 0, False
        while not over:
            obs, _, terminated, truncated, info = env.step(session.act(obs))
            steps, over = steps + 1, terminated or truncated
        played.append((info["success"], steps))
    assert played == [(episode.success, episode.length) for episode in result.episodes]


def test_a_policy_takes_one_observation_and_a_seed(toy):
    policy = fp.load_policy(toy[0] / toy[2].path)
    obs = {"position": np.array([0.1, -0.9], np.float32)}
    chunk = policy.act(obs, seed=0)
    assert isinstance(chunk, np.ndarray) and chunk.shape == (8, 2)
    rows = {"position": np.broadcast_to(obs["position"], (1, policy.contract.history, 2))}
    assert np.array_equal(chunk, policy.act(rows, torch.Generator().manual_seed(0))[0])
    assert np.array_equal(chunk, policy.act(obs, seed=0)) and not np.array_equal(chunk, policy.act(obs, seed=1))
    assert isinstance(policy.act({"position": torch.tensor([0.1, -0.9])}, seed=0), torch.Tensor)
    for wrong, told in (
        ({"obs": obs}, "seed=0, or a torch.Generator"),
        ({"obs": obs, "seed": -1}, "a whole number from 0 on"),
        ({"obs": obs, "seed": True}, "a whole number from 0 on"),
        ({"obs": obs, "seed": 0, "generator": torch.Generator()}, "one of them"),
        ({"obs": {"positoin": obs["position"]}, "seed": 0}, "'position' is missing"),
        ({"obs": {"position": np.zeros(3)}, "seed": 0}, "has shape"),
        ({"obs": {"position": np.array([np.nan, 0.0])}, "seed": 0}, "NaN"),
    ):
        with pytest.raises(ConfigError, match=told):
            policy.act(**wrong)


def test_what_is_mistyped_or_does_not_belong_together_is_told(toy, tmp_path, monkeypatch):
    home, data, _ = toy
    monkeypatch.chdir(tmp_path)
    shutil.copy(home / "toy.hdf5", "hopper-medium-v2.hdf5")
    hopper = fp.presets["iql-walker2d-medium-v2"].with_(data="hopper-medium-v2.hdf5")
    for told, call in (
        ("did you mean 'dm1-lift'", lambda: fp.train("dm1-lfit", data=data)),
        ("fp.train is given a Run", lambda: fp.train(toy[2])),
        ("did you mean 'steps'", lambda: fp.train("debug", data=data, stpes=3)),
        ("did you mean 'filter_key'", lambda: fp.load_dataset("toy.hdf5", filterkey="better")),
        ("named as hopper-medium-v2", lambda: fp.train("dm1-lift", data="hopper-medium-v2.hdf5")),
        ("for walker2d-medium-v2, and", lambda: fp.train(hopper)),
        ("no data.path|no published file", lambda: fp.train("iql", data="toy.hdf5")),
        ("did you mean 'toy'", lambda: fp.make_env("tyo")),
        ("robot run RUN", lambda: fp.make_env("franka-lift")),
        ("holds no checkpoint", lambda: fp.load_policy(tmp_path)),
    ):
        with pytest.raises(fp.FlowPolicyError, match=told):
            call()
    place = str(home / "toy.hdf5")
    changed = dataclasses.replace(data, sha256="0" * 64, config=DataConfig(path=place))
    with pytest.raises(fp.FlowPolicyError, match="has changed since it was loaded"):
        fp.train("debug", data=changed)
    assert not (tmp_path / "runs").exists()


def test_a_loaded_file_keeps_the_options_it_was_loaded_with(toy):
    home, _, _ = toy
    data = fp.load_dataset(home / "toy.hdf5", reward_shift=-1.0, memory_limit_mb=64)
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowpolicy.train.training.train", lambda experiment, out, progress: seen.update(it=experiment))
        fp.train("fql-toy", data=data, agent={"chunk": 2})
    made = seen["it"]
    assert (made.data.reward_shift, made.data.memory_limit_mb, made.agent.chunk) == (-1.0, 64, 2)
    assert made.data.path == str(home / "toy.hdf5")


def test_the_programs_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    try:
        for block in BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8")):
            exec(block, names)
    finally:
        fp.train.kinds.KINDS.pop("my_agent", None)
    told = capsys.readouterr().out
    assert "success, Wilson 95 %" in told and "<Run runs/toy: FlowBC for toy, update 100 of 100>" in told
    assert "<Run runs/flow-bc-toy-seed0: FlowBC for toy, update 100 of 100>" in told
    assert "<Evaluation of runs/toy: success" in told
    assert "unknown preset 'debgu'" in told and "did you mean 'debug'" in told
    assert "success: " in told
    assert "<Run runs/mine: MyAgent for toy, update 20 of 20>" in told


def test_the_command_line_knows_agents_of_other_packages(tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "import dataclasses\nfrom flowpolicy.train.kinds import register_config\n"
        "@register_config('elsewhere')\n@dataclasses.dataclass(frozen=True)\nclass Elsewhere:\n    size: int = 1\n"
    )
    info = tmp_path / "elsewhere-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[flowpolicy.agents]\nelsewhere = elsewhere\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from flowpolicy.core.config import decode\nfrom flowpolicy.train.kinds import KINDS\n"
        "print(decode({'class': 'elsewhere', 'size': 3}, KINDS))"
    )
    assert alone(code) == "Elsewhere(size=3)\n"
    (tmp_path / "elsewhere.py").write_text("import missing_package")
    failing = code.replace("print(", "print('no', ")
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True)
    assert "'elsewhere = elsewhere' of the installed package elsewhere cannot be imported" in done.stderr
