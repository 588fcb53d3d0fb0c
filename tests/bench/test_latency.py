"""What the latency benchmark measures against, and that its report holds together. No figure is judged here."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowpolicy.bench import latency
from flowpolicy.bench.latency import bench_latency
from flowpolicy.bench.latency_figure import draw_latency, latency_table
from flowpolicy.bench.lerobot import PROGRAM, lerobot_settings
from flowpolicy.bench.products import numpy_products, products, torch_products, weight_bytes
from flowpolicy.core.errors import ConfigError, FlowPolicyError
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.unet import UNet
from flowpolicy.policy import Policy
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.samplers import MAP, FlowSampler

CONTRACT = Contract(Spec({"a": ObservationSpec((3,)), "b": ObservationSpec((2,))}, ActionSpec(2)), 2, 4, 2, 1)


SMALL = MLP(width=16, depth=2)


def policy(net=SMALL, sampler="map"):
    torch.manual_seed(0)
    config = PolicyConfig(net, StateEncoder(width=8), {"map": MAP, "euler": FlowSampler()}[sampler])
    return Policy(config, CONTRACT, Normalizer({"a": 3, "b": 2}, 2)).eval()


def test_the_floor_is_every_product_and_nothing_else():
    # observations 2 x 5, noise 4 x 2, features of two times 10: [10 -> 8 -> 8], [8 + 10 + 18 -> 16 -> 16 -> 8].
    shapes = [(first, second) for _, first, second in products(policy(), 1, 1)]
    layers = [(10, 8), (8, 8), (36, 16), (16, 16), (16, 8)]
    assert shapes == [([1, a], [a, b]) for a, b in layers]
    assert weight_bytes(products(policy(), 1, 1)) == 4 * sum(a * b for a, b in layers)
    assert [first for _, first, _ in products(policy(), 1, 3)] == [[3, a] for a, _ in layers]


def test_weights_that_are_used_again_are_the_same_factor():
    numbers = [number for number, _, _ in products(policy(sampler="euler"), 2, 1)]
    assert numbers == [0, 1, 2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize("net", [SMALL, UNet(width=8, levels=2)])
def test_both_libraries_multiply_the_same_factors(net, monkeypatch):
    outputs = []
    monkeypatch.setattr(np, "matmul", _spy(np.matmul, outputs, np.asarray))
    monkeypatch.setattr(np, "dot", _spy(np.dot, outputs, np.asarray))
    found = products(policy(net), 1, 2)
    numpy_products(found)()
    assert len(outputs) == len(found)
    half, outputs[:] = list(outputs), []
    monkeypatch.setattr(torch, "matmul", _spy(torch.matmul, outputs, torch.Tensor.numpy))
    torch_products(found)()
    for one, other in zip(half, outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def _spy(function, outputs, convert):
    def call(a, b, out):
        function(a, b, out=out)
        outputs.append(convert(out).copy())

    return call


def test_the_report_of_a_run(tmp_path):
    policy().save(tmp_path / "run")
    result = bench_latency(tmp_path / "run", ("numpy", "cuda_graph"), (1, 2), (1,), calls=20, rounds=2)
    assert result["best"].keys() == {"engine", "p50", "p99", "ratio_p50"}
    assert result["best"]["engine"] == "numpy"
    assert "CUDA" in result["left_out"]["cuda_graph"]
    rows = {(row["entry"], row["batch"]): row for row in result["entries"]}
    assert len(rows) == 8  # numpy, two floors and the read, at two batch sizes
    for batch in (1, 2):
        floors = [rows[name, batch]["p50"] for name in latency.FLOORS]
        row = rows["numpy", batch]
        assert row["ratio_p50"] == pytest.approx(row["p50"] / min(floors))
        assert row["p50"] <= row["p99"] <= row["p99.9"]
        assert 2 * row["peak_memory_mb"] < rows["products, torch", batch]["peak_memory_mb"]  # no torch in it
    json.dumps(result, allow_nan=False)
    assert "CUDA device" in latency_table(result).caption
    draw_latency(result, "a run", tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 5000


def test_no_engine_at_all_is_an_error(tmp_path):
    policy(UNet(width=8, levels=2)).save(tmp_path / "run")
    with pytest.raises(ConfigError, match="no engine can run"):
        bench_latency(tmp_path / "run", ("cuda_graph",), calls=4, rounds=1)


LEROBOT = {
    "__init__.py": "",
    "configs/types.py": "class FeatureType: STATE, ENV, ACTION = range(3)\n\n"
    "class PolicyFeature:\n    def __init__(self, type, shape): self.type, self.shape = type, shape\n",
    "policies/diffusion/configuration_diffusion.py": "class DiffusionConfig:\n"
    "    def __init__(self, **options): self.__dict__.update(options)\n",
    "policies/diffusion/modeling_diffusion.py": """
import torch


class DiffusionPolicy:
    def __init__(self, config):
        self.config, self.diffusion = config, self

    def eval(self):
        return self

    def generate_actions(self, batch):
        inputs = self.config.input_features
        for key, feature in inputs.items():
            assert batch[key].shape[1:] == (self.config.n_obs_steps, *feature.shape)
        assert self.config.n_action_steps <= self.config.horizon - self.config.n_obs_steps + 1
        return torch.zeros(len(batch["observation.state"]), self.config.n_action_steps, 2)
""",
}


def test_the_peer_is_given_the_same_decision(tmp_path):
    """A stand-in with LeRobot's interface; ``flowpolicy bench latency --peer-python`` runs the real one."""
    for name, text in LEROBOT.items():
        (tmp_path / "lerobot" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lerobot" / name).write_text(text)
    settings = {**lerobot_settings(CONTRACT, [1, 2], 10), "threads": 1}
    assert (settings["state"], settings["environment_state"], settings["horizon"]) == (3, 2, 8)
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, input="2 3\nmemory\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ready, seconds, memory = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (ready[0], seconds[0], memory[0]) == ("ready", "seconds", "memory")
    assert len(json.loads(seconds[1])) == 3


def test_a_python_without_the_peer_is_named(tmp_path):
    policy().save(tmp_path / "run")
    with pytest.raises(FlowPolicyError, match="lerobot cannot be imported by"):
        bench_latency(tmp_path / "run", ("numpy",), calls=4, rounds=1, peer_python=sys.executable)
