"""The contract notices every word on which two sides disagree."""

import dataclasses
import re

import pytest

from flowpolicy.core.errors import CheckpointError, ConfigError, ContractError
from flowpolicy.core.files import read_json, write_json
from flowpolicy.core.spec import (
    UNSTATED,
    ActionSpec,
    ImageSpec,
    ObservationSpec,
    RenderSpec,
    image_json,
    load_contract,
    read_image,
    save_contract,
)


def test_round_trip(tmp_path, contract):
    save_contract(tmp_path / "contract.json", contract)
    assert load_contract(tmp_path / "contract.json") == contract


def test_a_scale_of_rewards_is_kept_and_one_of_1_leaves_the_bytes_as_they_were(tmp_path, contract):
    save_contract(tmp_path / "contract.json", contract)
    assert "reward_scale" not in (tmp_path / "contract.json").read_text()
    scaled = dataclasses.replace(contract, reward_scale=0.25)
    save_contract(tmp_path / "scaled.json", scaled)
    assert read_json(tmp_path / "scaled.json")["reward_scale"] == 0.25
    assert load_contract(tmp_path / "scaled.json") == scaled
    scaled.require(contract.spec, "the environment, whose rewards are as they are", "")


def test_agreement_is_silent(contract, spec):
    contract.require(spec, "the environment", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 3),
        ("convention", "absolute"),
        ("frame", "tool"),
        ("units", "1 m per unit"),
        ("rotation", "quaternion"),
        ("gripper", "+1 opens"),
        ("rate_hz", 10.0),
        ("low", -2.0),
        ("high", 2.0),
    ],
)
def test_every_word_of_the_action_convention_counts(contract, spec, field, value):
    other = dataclasses.replace(spec, action=dataclasses.replace(spec.action, **{field: value}))
    with pytest.raises(
        ContractError, match=re.escape(f"action.{field}: {getattr(spec.action, field)!r} against {value!r}")
    ):
        contract.require(other, "the robot", "re-train")


@pytest.mark.parametrize(
    ("field", "value"),
    [("env_id", "x"), ("env_version", "2"), ("horizon", 5), ("success", "x"), ("reward_shift", -1.0)],
)
def test_every_word_of_the_environment_counts(contract, spec, field, value):
    with pytest.raises(ContractError, match=field):
        contract.require(dataclasses.replace(spec, **{field: value}), "the environment", "")


def test_observations_must_be_there_in_shape(contract, spec):
    missing = dataclasses.replace(spec, observation={"state": spec.observation["state"]})
    with pytest.raises(ContractError, match="observation goal: present against absent"):
        contract.require(missing, "the file", "")
    shape = dataclasses.replace(spec.observation["goal"], shape=(5,))
    with pytest.raises(ContractError, match=r"observation goal\.shape"):
        contract.require(
            dataclasses.replace(spec, observation={**spec.observation, "goal": shape}), "the environment", ""
        )


def test_extra_observations_and_unstated_words_agree(contract, spec):
    extra = dataclasses.replace(
        spec,
        observation={**spec.observation, "camera": spec.observation["goal"]},
        action=ActionSpec(2),
        success=UNSTATED,
        horizon=0,
    )
    contract.require(extra, "the file", "")


def test_unknown_schema_is_refused(tmp_path, contract):
    path = tmp_path / "contract.json"
    save_contract(path, contract)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(CheckpointError, match="schema"):
        load_contract(path)


WRIST = ObservationSpec((3, 84, 84), kind="image", dtype="uint8", channels="first", camera="wrist")


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("camera", "front", "observation wrist.camera: 'wrist' against 'front'"),
        ("dtype", "float32", "observation wrist.dtype: 'uint8' against 'float32'"),
        ("shape", (3, 96, 96), "observation wrist.shape: (3, 84, 84) against (3, 96, 96)"),
    ],
)
def test_every_word_of_a_picture_counts(field, value, line, contract, spec, tmp_path):
    def seen(wrist):
        return dataclasses.replace(spec, observation={**spec.observation, "wrist": wrist})

    contract = dataclasses.replace(contract, spec=seen(WRIST))
    save_contract(tmp_path / "contract.json", contract)
    assert load_contract(tmp_path / "contract.json") == contract
    contract.require(seen(dataclasses.replace(WRIST, camera=UNSTATED)), "the robot", "")
    with pytest.raises(ContractError, match=re.escape(line)):
        contract.require(seen(dataclasses.replace(WRIST, **{field: value})), "the robot", "")


FAST = RenderSpec("mujoco", "3.8.1", "visual", 0, "off", "off", {"skybox": "on"})
FRONT = ImageSpec((84, 96, 3), camera="agentview", mount="world", fov_deg=45.0, rate_hz=20.0, render=FAST)


def test_a_stream_of_pictures_says_how_they_were_taken(tmp_path, contract, spec):
    seen = dataclasses.replace(spec, observation={**spec.observation, "front": FRONT})
    contract = dataclasses.replace(contract, spec=seen)
    save_contract(tmp_path / "contract.json", contract)
    assert load_contract(tmp_path / "contract.json") == contract
    assert (FRONT.height, FRONT.width, seen.images) == (84, 96, {"front": FRONT})
    assert read_image(image_json(FRONT), "env_args") == FRONT
    with pytest.raises(ConfigError, match="no stream of pictures"):
        read_image(3, "env_args")


@pytest.mark.parametrize(
    ("picture", "drawing", "line"),
    [
        ({}, {"reflections": "on"}, "render.reflections: 'off' against 'on'"),
        ({}, {"msaa": 4}, "render.msaa: 0 against 4"),
        ({}, {"geoms": "collision"}, "render.geoms: 'visual' against 'collision'"),
        ({}, {"version": "3.9.0"}, "render.version: '3.8.1' against '3.9.0'"),
        ({}, {"settings": {"skybox": "off"}}, "render.settings.skybox: 'on' against 'off'"),
        ({"camera": "sideview"}, {}, "camera: 'agentview' against 'sideview'"),
        ({"mount": "hand"}, {}, "mount: 'world' against 'hand'"),
        ({"fov_deg": 60.0}, {}, "fov_deg: 45.0 against 60.0"),
    ],
)
def test_pictures_drawn_otherwise_are_refused_unless_that_is_allowed(picture, drawing, line, contract, spec):
    def seen(image):
        return dataclasses.replace(spec, observation={**spec.observation, "front": image})

    contract = dataclasses.replace(contract, spec=seen(FRONT))
    other = seen(dataclasses.replace(FRONT, **picture, render=dataclasses.replace(FAST, **drawing)))
    with pytest.raises(ContractError, match=re.escape(line)) as refused:
        contract.require(other, "the environment", "render as in training")
    assert "--allow-render-mismatch" in str(refused.value)
    assert contract.require(other, "the environment", "", allow_render_mismatch=True) == [f"observation front.{line}"]


def test_another_size_is_no_matter_of_drawing(contract, spec):
    def seen(image):
        return dataclasses.replace(spec, observation={**spec.observation, "front": image})

    contract = dataclasses.replace(contract, spec=seen(FRONT))
    for image in (dataclasses.replace(FRONT, shape=(96, 96, 3)), dataclasses.replace(FRONT, colour="bgr")):
        with pytest.raises(ContractError, match=r"front\.(shape|colour)") as refused:
            contract.require(seen(image), "the environment", "", allow_render_mismatch=True)
        assert "--allow-render-mismatch" not in str(refused.value)


def test_what_is_not_known_of_pictures_agrees(contract, spec):
    def seen(image):
        return dataclasses.replace(spec, observation={**spec.observation, "front": image})

    contract = dataclasses.replace(contract, spec=seen(FRONT))
    contract.require(seen(ImageSpec((84, 96, 3))), "the file", "")
    contract.require(seen(ImageSpec((84, 96, 3), render=RenderSpec())), "the file", "")


def test_a_state_is_no_picture(contract, spec):
    picture = dataclasses.replace(spec, observation={**spec.observation, "goal": WRIST})
    with pytest.raises(ContractError, match=re.escape("observation goal.kind: 'state' against 'image'")):
        contract.require(picture, "the robot", "")


def test_contracts_from_before_pictures_load_as_states(contract, tmp_path):
    path = tmp_path / "contract.json"
    save_contract(path, contract)
    old = read_json(path)
    for each in old["spec"]["observation"].values():
        for name in ("kind", "dtype", "channels", "camera"):
            del each[name]
    write_json(path, old)
    assert load_contract(path) == contract


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "sound"}, "kind state or image"),
        ({"dtype": "float16"}, "dtype float32 or uint8"),
        ({"kind": "state"}, "a state of float32, without channels and camera"),
        ({"channels": "last"}, "1, 3 or 4 channels"),
        ({"channels": ""}, "1, 3 or 4 channels"),
        ({"shape": (84, 84)}, "1, 3 or 4 channels"),
        ({"shape": (3, 0, 84)}, "at least 1"),
    ],
)
def test_impossible_observations_are_refused(change, expected):
    with pytest.raises(ConfigError, match=expected):
        dataclasses.replace(WRIST, **change)
