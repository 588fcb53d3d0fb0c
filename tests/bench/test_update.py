"""The updates that are measured: batches for every agent, and what is reported of compiling. No figure is judged."""

import pytest
import torch

from flowpolicy.agents.groups.gdro import GDRO
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.qc import QC
from flowpolicy.bench import first_call, update
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.plain import Plain

SMALL = {"net": Plain(width=8, depth=1), "critic": CriticConfig(width=8, depth=1)}


@pytest.mark.parametrize("config", [PRESETS["debug"][1].agent, IQL(**SMALL), QC(**SMALL, chunk=3, execute=3)])
def test_batches_of_noise_are_what_the_agent_takes(config):
    agent = update.make_agent(config, 5, 2, compile=False)
    metrics = update.updates(agent, update.random_batch(config, 5, 2, 6))()
    assert torch.isfinite(metrics["loss"])


def test_groups_cannot_be_made_of_noise():
    with pytest.raises(ConfigError, match="GDRO cannot be made of noise"):
        update.random_batch(GDRO(), 5, 2, 6)


def test_compiling_pays_from_its_cost_over_what_an_update_saves(monkeypatch):
    monkeypatch.setattr(update, "first_calls", lambda *sizes: {"cold_s": 10.0, "warm_s": 1.0})
    monkeypatch.setattr("flowpolicy.agents.base.agent.CompiledLoss", lambda loss, device: loss)
    result = update.bench_compiling(IQL(**SMALL), 5, 2, batch_size=4, rounds=3, calls=1)
    saved = result["saved_ms"]
    assert result["pays_from"] == (round(10_000 / saved) if saved > 0 else None)
    assert list(result["ms"]) == ["compiled", "torch's own operators", "operators in parts"]
    assert update.update_table(result).row_count == 5


def test_a_first_update_that_fails_is_an_error_that_says_so():
    with pytest.raises(TrainingError, match="could not be measured: GDRO post-trains and cannot start"):
        first_call.first_calls(GDRO(), 5, 2, 6)
