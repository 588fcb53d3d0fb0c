"""The drivers that the suites run through: a further one is one line here."""

import importlib
import importlib.util
import os
from pathlib import Path

import pytest

TWIN_VENV = Path(os.environ.get("FLOWPOLICY_TWIN_VENV", Path(__file__).parents[2] / ".venv-twin"))
CLIENTS = {
    "franky": ("franky", "flowpolicy.real_robot.drivers.franky_driver:FrankyArm"),
}
"""Drivers that speak the robot's protocol: module that they need, and class, which takes an address."""


def client_of(name):
    """Class of a client's driver; skips where its package is missing."""
    package, where = CLIENTS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip("needs the extra 'franka'")
    module, _, cls = where.partition(":")
    return getattr(importlib.import_module(module), cls)
