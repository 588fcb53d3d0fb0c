"""Files of simulator states are handed to the simulator only where they say nothing dangerous."""

import copy
import json
import shutil

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import DataError, FlowPolicyError
from flowpolicy.envs.recorded_models import require_known_arguments, require_safe_model
from flowpolicy.envs.rendered_data import read_source, render_file
from flowpolicy.envs.robosuite import RobosuiteConfig

MODEL = '<mujoco><compiler meshdir="m"/><asset>{}</asset><worldbody>{}</worldbody>{}</mujoco>'
MESH = '<mesh name="a" file="{}"/>'


@pytest.mark.parametrize(
    "file", ["robosuite/models/a.stl", "/x/robosuite/models/../models/a.stl", "/a/robosuite/b/robosuite/c.stl"]
)
def test_robosuites_own_files_are_named(file):
    require_safe_model(MODEL.format(MESH.format(file), "", ""), "x")


@pytest.mark.parametrize(
    "model",
    [
        MODEL.format(MESH.format("/etc/passwd"), "", ""),
        MODEL.format(MESH.format("robosuite/../../../etc/passwd"), "", ""),
        MODEL.format(MESH.format("/tmp/notrobosuite/a.stl"), "", ""),
        MODEL.format(MESH.format("robosuite//etc/passwd"), "", ""),
        MODEL.format('<texture type="cube" fileup="/etc/passwd"/>', "", ""),
        MODEL.format('<texture builtin="flat" width="999999" height="999999"/>', "", ""),
        MODEL.format("", '<include file="/etc/passwd"/>', ""),
        MODEL.format("", '<replicate count="1000000"><geom size="1"/></replicate>', ""),
        MODEL.format("", "", '<extension><plugin plugin="mujoco.elasticity.cable"/></extension>'),
        MODEL.format("", "", '<asset><mesh file="robosuite/a.stl"/></asset>'),
        MODEL.format("", "", '<size memory="900G"/>'),
        '<!DOCTYPE x [<!ENTITY a "aa">]>' + MODEL.format("", "", ""),
        "<mujoco/>",
        "not xml",
        MODEL.format("", "<body/>" * 60_000, ""),
        MODEL.format("", " " * (9 << 20), ""),
    ],
)
def test_other_models_are_refused(model):
    with pytest.raises(DataError, match="the model of x"):
        require_safe_model(model, "x")


def test_arguments_of_environments_are_known_ones(tmp_path):
    args = RobosuiteConfig().env_args()
    controllers = args["env_kwargs"]["controller_configs"]
    found = require_known_arguments(args, controllers, tmp_path)
    assert found["env_kwargs"]["controller_configs"] == controllers and "has_renderer" not in found["env_kwargs"]
    old = {**args, "env_kwargs": {"robots": "Panda", "controller_configs": {"type": "OSC_POSE"}}}
    assert require_known_arguments(old, controllers, tmp_path)["env_kwargs"]["controller_configs"] is controllers
    for name, value in (
        ("controller_configs", "/etc/passwd"),
        ("controller_configs", {"body_parts": {"right": {"type": "../../x"}}}),
        ("control_freq", "20"),
        ("control_freq", float("nan")),
        ("robots", ["Panda", "Panda"]),
        ("robots", ["../evil"]),
        ("placement_initializer", {"a": 1}),
        ("horizon", [1]),
    ):
        wrong = copy.deepcopy(args)
        wrong["env_kwargs"][name] = value
        with pytest.raises(DataError):
            require_known_arguments(wrong, controllers, tmp_path)
    with pytest.raises(DataError):
        require_known_arguments({**args, "env_kwargs": "x"}, controllers, tmp_path)


@pytest.mark.sim
def test_observations_come_back_from_states_alone(lift_file, tmp_path):
    """Within a substep of 2 ms: robosuite's own poses are as old, and finger positions are equal."""
    bare, out = tmp_path / "bare.hdf5", tmp_path / "out.hdf5"
    shutil.copy(lift_file[0], bare)
    with h5py.File(bare, "a") as file:
        for name in list(file["data"])[1:]:
            del file[f"data/{name}"]
        for key in ("obs", "next_obs", "rewards", "dones"):
            del file[f"data/demo_0/{key}"]
    assert read_source(bare).raw
    render_file(bare, out, RobosuiteConfig(), workers=0)
    with h5py.File(lift_file[0]) as before, h5py.File(out) as after:
        one, two = before["data/demo_0"], after["data/demo_0"]
        for key in one["obs"]:
            np.testing.assert_allclose(one["obs"][key], two["obs"][key], atol=3e-3)
        for key in ("obs/robot0_gripper_qpos", "rewards", "dones", "states", "actions"):
            np.testing.assert_array_equal(one[key], two[key])
        np.testing.assert_array_equal(two["obs/object"][1:], two["next_obs/object"][:-1])
        assert json.loads(after["data"].attrs["env_args"]) == json.loads(before["data"].attrs["env_args"])
    before = out.read_bytes()
    for harm in ("model", "states", "task"):
        with h5py.File(bare, "a") as file:
            demo = file["data/demo_0"]
            if harm == "model":
                kept, demo.attrs["model_file"] = demo.attrs["model_file"], MODEL.format("", "<include file='/x'/>", "")
            elif harm == "states":
                demo.attrs["model_file"] = kept
                demo["states"][3, 4] = np.nan
            else:
                demo["states"][3, 4] = 0
                args = {**RobosuiteConfig().env_args(), "env_name": "os.system"}
                file["data"].attrs["env_args"] = json.dumps(args)
        with pytest.raises(FlowPolicyError):
            render_file(bare, out, RobosuiteConfig(), workers=0)
        assert out.read_bytes() == before
