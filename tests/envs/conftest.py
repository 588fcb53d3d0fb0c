import importlib
from pathlib import Path

import pytest

from flowpolicy.envs.demonstrators import make_demonstrations


@pytest.fixture(scope="session")
def lift_file(tmp_path_factory):
    """(path, summary) of three Lift demonstrations by one worker, seed 5."""
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    return path, make_demonstrations("lift", path, episodes=3, seed=5, workers=1)


@pytest.fixture(scope="session")
def can_file(tmp_path_factory):
    """(path, summary) of one Can demonstration."""
    path = tmp_path_factory.mktemp("can") / "can.hdf5"
    return path, make_demonstrations("can", path, episodes=1, seed=0, workers=1)


@pytest.fixture
def failing(monkeypatch):
    """The module ``failing``, importable by worker processes too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("failing")
