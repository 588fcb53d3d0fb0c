"""The Adroit door against the human demonstrations of D4RL."""

from pathlib import Path

import numpy as np
import pytest

from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs import ENVS, normalized_score

DOOR = Path(__file__).parents[3] / "shared/data/adroit_door_human.hdf5"


def test_reference_returns_score_zero_and_a_hundred():
    score = normalized_score(ENVS["door"].spec().env_id)
    assert score(-56.5) == pytest.approx(0, abs=1e-3)
    assert score(2880.6) == pytest.approx(100, abs=1e-2)
    assert normalized_score("robosuite/Lift") is None


@pytest.mark.sim
def test_human_demonstrations_open_the_door_in_8_of_25_episodes():
    if not DOOR.exists():
        pytest.skip(f"{DOOR} is not here")
    outcomes = ENVS["door"].replay_returns(load_dataset(DataConfig(path=str(DOOR))), 25)
    assert sum(one.success for one in outcomes) == 8
    assert np.mean([one.episode_return for one in outcomes]) == pytest.approx(800, abs=25)
