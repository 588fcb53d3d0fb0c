"""The contract notices every word on which two sides disagree."""

import dataclasses
import re

import pytest

from flowpolicy.core.errors import CheckpointError, ContractError
from flowpolicy.core.spec import UNSTATED, ActionSpec, load_contract, save_contract


def test_round_trip(tmp_path, contract):
    save_contract(tmp_path / "contract.json", contract)
    assert load_contract(tmp_path / "contract.json") == contract


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
