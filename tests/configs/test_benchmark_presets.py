"""Presets by the names of published files: all can be made, some train, and file names are understood."""

import dataclasses
import json
import tomllib
from pathlib import Path

import h5py
import pytest

from flowpolicy.cli import main
from flowpolicy.configs import benchmark_presets
from flowpolicy.configs.benchmark_presets import (
    OWN,
    TABLES,
    agents_of,
    benchmark_files,
    benchmarks,
    known_file,
    published,
)
from flowpolicy.configs.preset_table import find_preset, listing, presets
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.config import changed, decode, encode
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.catalogue import PUBLISHED
from flowpolicy.envs import find_env
from flowpolicy.train import Trainer
from flowpolicy.train.kinds import KINDS

from .test_presets import random_file

FOLDER = Path(benchmark_presets.__file__).parent


def test_every_preset_is_made_survives_json_and_observes_what_its_environment_gives():
    specs = {env: find_env(env).spec() for env in {one.env for one in benchmark_files().values()}}
    made = {name: one.experiment() for name, one in benchmarks().items()}
    assert len(made) > 2_000
    for name, experiment in made.items():
        one, spec = benchmarks()[name], specs[experiment.env]
        assert set(experiment.data.obs_keys) <= set(spec.observation), name
        assert experiment.data.reward_shift == spec.reward_shift, name
        assert one.source and one.agent in name
        assert experiment.data.filter_key == (f"task{one.data.task}" if one.data.task else "")
        assert experiment.dataset == one.data.name
    alike = [dataclasses.replace(each, dataset="any") for each in made.values()]
    for experiment in {json.dumps(encode(each, KINDS)): each for each in alike}.values():
        assert decode(json.loads(json.dumps(encode(experiment, KINDS))), KINDS) == experiment


def test_every_published_file_that_an_environment_fits_has_presets_and_every_row_a_file():
    known = {one.file for one in benchmark_files().values()}
    assert {name for name in PUBLISHED if not name.endswith("-val")} - known == {
        f"ant-{kind}-v2" for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    }
    for table in TABLES:
        read = tomllib.loads((FOLDER / f"{table}.toml").read_text())
        for group in read["groups"].values():
            names = {*group["datasets"], *group["datasets"].values()}
            assert set(group.get("agents", {})) <= set(read["agents"])
            for said in (group, *group.get("agents", {}).values()):
                assert set(said) <= {"title", "datasets", "values", "columns", "rows", "agents", "only", "source"}
                assert set(said.get("rows", {})) <= names
                assert all(len(row) == len(said["columns"]) for row in said.get("rows", {}).values())
        for part in read["published"]:
            assert set(part["rows"]) <= set(benchmark_files()) and part["source"]
            assert all(len(row) == len(part["columns"]) for row in part["rows"].values())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "iql-hopper-medium-expert-v2",
            {"agent.expectile": 0.7, "agent.alpha": 3.0, "data.reward_scale": "return_range", "agent.net.width": 256},
        ),
        ("iql-door-human-v1", {"agent.alpha": 0.5, "data.reward_scale": 1.0, "agent.critic.layer_norm": False}),
        ("iql-antmaze-large-play-v2", {"agent.expectile": 0.9, "agent.alpha": 10.0, "data.reward_shift": -1.0}),
        (
            "rebrac-hopper-medium-replay-v2",
            {
                "agent.alpha_actor": 0.05,
                "agent.alpha_critic": 0.5,
                "batch_size": 1024,
                "agent.critic_optimizer.lr": 1e-3,
            },
        ),
        ("rebrac-antmaze-umaze-v2", {"agent.discount": 0.999, "agent.critic_optimizer.lr": 5e-5, "batch_size": 256}),
        ("fql-antmaze-large-play-v2", {"agent.alpha": 3.0, "agent.normalize_q": False, "steps": 500_000}),
        ("fql-pen-expert-v1", {"agent.alpha": 3000.0, "agent.critic.aggregate": "min", "agent.net.width": 512}),
        ("ifql-door-cloned-v1", {"agent.candidates": 128}),
        ("ifql-door-expert-v1", {"agent.candidates": 32}),
        (
            "fql-antmaze-giant-navigate-singletask-task4-v0",
            {"agent.discount": 0.995, "agent.critic.aggregate": "min", "env": "antmaze-giant-task4"},
        ),
        ("rebrac-cube-single-play-v0", {"agent.alpha_actor": 1.0, "agent.alpha_critic": 0.0, "env": "cube-single"}),
        ("qc-fql-square-mh", {"agent.alpha": 100.0, "agent.chunk": 5, "agent.mode": "distilled", "env": "square"}),
        ("fisher-released-puzzle-4x4-play-v0", {"agent.budget": 0.005, "agent.metric.mode": "proxy", "agent.nfe": 11}),
        ("dm1-tool-hang-ph-image", {"data.cameras": ("sideview", "robot0_eye_in_hand"), "agent.chunk": 8}),
    ],
)
def test_presets_take_the_published_values(name, values):
    experiment = find_preset(name)[1]
    for path, wanted in values.items():
        found = experiment
        for part in path.split("."):
            found = getattr(found, part)
        assert found == wanted, path


def test_sources_are_told_and_missing_ones_too():
    assert "2110.06169" in find_preset("iql-hopper-medium-v2")[0]
    assert OWN in find_preset("qc-hopper-medium-v2")[0]


def test_published_scores_are_found_by_file_and_agent():
    assert published("hopper-medium-v2", "rebrac")[0] == 102.3
    score, source = published("cube-single-play-singletask-task2-v0", "fql")
    assert (score, "FQL table 3" in source) == (97.0, True)
    assert published("hopper-medium-v2", "fisher") is None


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("hopper-medium-v2.hdf5", "hopper-medium-v2"),
        ("/data/hopper_medium_expert-v2.hdf5", "hopper-medium-expert-v2"),
        ("Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5", "antmaze-large-play-v2"),
        ("cube-single-play-v0-val.npz", "cube-single-play-v0"),
        ("lift/ph/low_dim_v141.hdf5", "lift-ph"),
        ("robomimic/tool_hang/ph/image_v141.hdf5", "tool-hang-ph-image"),
        ("hopper-medium-expert.hdf5", ""),
        ("low_dim_v141.hdf5", ""),
        ("ant-medium-v2.hdf5", ""),
        ("a/b/low_dim.hdf5", ""),
    ],
)
def test_names_of_files_are_understood(path, known):
    assert known_file(path) == known


TRAINED = (
    "iql-hopper-medium-expert-v2",
    "rebrac-antmaze-large-play-v2",
    "fql-pen-cloned-v1",
    "fisher-released-kitchen-partial-v0",
    "mean-flow-q-maze2d-umaze-v1",
    "qc-puzzle-4x6-play-singletask-task3-v0",
    "fisher-humanoidmaze-giant-navigate-v0",
    "qc-fql-square-mh",
    "mip-transport-ph",
    "regression-tool-hang-ph",
)


@pytest.mark.parametrize("name", TRAINED)
def test_a_preset_trains_on_data_of_its_shapes(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment = find_preset(name)[1]
    data = random_file(tmp_path / "data.hdf5", experiment.env)
    if experiment.data.reward_shift:  # of rewards that are 0 and 1
        with h5py.File(data, "a") as file:
            file["rewards"][...] = file["rewards"][()] > 0.9
    small = {"width": 8, "depth": 2}
    agent = {part: small for part in ("net", "critic") if hasattr(experiment.agent, part)}
    Trainer(
        dataclasses.replace(
            changed(experiment, {"agent": agent}),
            data=dataclasses.replace(experiment.data, path=str(data), filter_key=""),
            steps=2,
            batch_size=8,
            compile="off",
            tensorboard=False,
        ),
        tmp_path / "run",
    ).train()
    contract = json.loads((tmp_path / "run/checkpoints/step_00000002/contract.json").read_text())
    assert ("reward_scale" in contract) == (experiment.data.reward_scale != 1.0)


def refusal(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_file_named_as_another_is_refused_with_both_names(tmp_path, capsys):
    told = refusal(["fql-antmaze-large-play-v2", "--data.path", "antmaze-medium-play-v2.hdf5"], capsys)
    assert "fql-antmaze-large-play-v2" in told and "antmaze-medium-play-v2.hdf5" in told
    assert "flowpolicy train fql-antmaze-medium-play-v2" in told
    told = refusal(["dm1-door", "--data.path", "relocate-human-v1.hdf5"], capsys)
    assert "relocate" in told and "dm1-door" in told
    told = refusal(["iql-hopper-medium-v2", "--data.path", "hopper-medium-v2.hdf5", "--env", "walker2d"], capsys)
    assert "walker2d" in told and "hopper-medium-v2.hdf5" in told
    told = refusal(["fql-cube-single-play-singletask-task4-v0", "--data.path", "cube-single-play-v0.npz"], capsys)
    assert "not a file" in told  # the names agree


def test_an_agent_alone_takes_the_preset_of_the_file(tmp_path, capsys):
    path = tmp_path / "hopper-medium-v2.hdf5"
    told = refusal(["iql", "--data.path", str(path)], capsys)
    assert f"{path} is not a file" in told
    told = refusal(["iql", f"--data.path={tmp_path / 'mine.hdf5'}"], capsys)
    assert "'iql' names an agent" in told and "mine.hdf5 no published file" in told
    assert "no --data.path" in refusal(["iql"], capsys)


def test_presets_are_listed_by_suite_and_found_by_words(capsys):
    text = listing()
    assert text.count("AGENT ") == len({(one.table, one.group) for one in benchmark_files().values()}) + 1
    assert all(len(line) < 125 for line in text.splitlines())
    assert set(presets.find("kitchen", "iql")) == {
        name for name in benchmarks() if "kitchen" in name and name.startswith(("iql", "ifql")) and "ifql" not in name
    }
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--list", "kitchen", "fisher"])
    assert not stopped.value.code
    assert "fisher-released-kitchen-mixed-v0" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no preset holds 'kitchn'"):
        listing("kitchn")


def test_a_name_that_is_nearly_one_is_answered_with_it():
    with pytest.raises(ConfigError, match="unknown preset 'fql-antmaze-large-pley-v2'") as error:
        presets["fql-antmaze-large-pley-v2"]
    assert "did you mean 'fql-antmaze-large-play-v2'" in str(error.value) and len(str(error.value)) < 400
    assert "fql-antmaze-large-play-v2" in presets and len(presets) == len(set(presets)) > 2_000
    assert not set(PRESETS) & set(benchmarks())
    assert list(agents_of(benchmark_files()["lift-ph-image"])) == ["regression", "flow-bc", "dm1"]
