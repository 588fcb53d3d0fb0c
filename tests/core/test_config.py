"""Configs survive JSON; a foreign tag, field or type is named."""

import dataclasses
import json

import pytest

from flowpolicy.configs.presets import KINDS, PRESETS
from flowpolicy.core.config import decode, encode
from flowpolicy.core.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    experiment = PRESETS[name][1]
    assert decode(json.loads(json.dumps(encode(experiment, KINDS))), KINDS) == experiment


def test_unknown_kind_field_and_type_are_named():
    value = encode(PRESETS["dm1-lift"][1], KINDS)
    with pytest.raises(ConfigError, match=r"config.agent.net: unknown kind 'mpl'") as caught:
        decode({**value, "agent": {**value["agent"], "net": {"class": "mpl"}}}, KINDS)
    assert "did you mean 'mlp'" in str(caught.value)
    with pytest.raises(ConfigError, match="has no field 'stepz'"):
        decode({**value, "stepz": 3}, KINDS)
    with pytest.raises(ConfigError, match=r"config.steps is 'many'"):
        decode({**value, "steps": "many"}, KINDS)
    with pytest.raises(ConfigError, match="agent"):
        decode({k: v for k, v in value.items() if k != "agent"}, KINDS)


def test_every_class_of_every_preset_has_a_tag():
    def classes(value):
        if dataclasses.is_dataclass(value):
            yield type(value)
            for field in dataclasses.fields(value):
                yield from classes(getattr(value, field.name))

    used = {cls for _, experiment in PRESETS.values() for cls in classes(experiment)}
    assert used <= set(KINDS.values())
