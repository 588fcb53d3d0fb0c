"""What programs of before import is what it became, and importing nothing of it costs nothing."""

import importlib
import subprocess
import sys

import pytest

from flowpolicy.core.moved import MOVED
from flowpolicy.real_robot.arm.models.franka import FR3


@pytest.mark.parametrize("before", MOVED)
def test_a_module_is_found_where_it_was(before):
    place, made = MOVED[before]
    old, new = importlib.import_module(before), importlib.import_module(place)
    own = {name for name, value in vars(new).items() if getattr(value, "__module__", "") == place}
    assert own and all(getattr(old, name) is getattr(new, name) for name in own)
    assert all(hasattr(old, name) for name in made)


def test_what_was_said_of_seven_joints_is_the_fr3s():
    records = importlib.import_module("flowpolicy.real_robot.records")
    assert records.tick_type(FR3.joints) == records.TICK and records.chunk_type(FR3.joints) == records.CHUNK
    assert importlib.import_module("flowpolicy.real_robot.limits").MODELS["FR3"] is FR3
    assert importlib.import_module("flowpolicy.envs.franka").FrankaConfig("reach").spec().action.size == 8


def test_nothing_is_imported_before_it_is_asked_for():
    told = "import sys, flowpolicy; print([name for name in sys.modules if name.startswith('flowpolicy.real_robot')])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_module_that_never_was_is_none():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flowpolicy.real_robot.wheels")
