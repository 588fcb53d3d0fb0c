"""Engines of policies that see: uint8 pictures in, cropped and scaled inside, the eager policy's actions out."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.bench.products import convolutions, products, torch_convolutions
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import Contract
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.backbones import SmallConv
from flowpolicy.nets.vision import VisionEncoder
from flowpolicy.policy import load_engine
from flowpolicy.policy.engines.engine import TOLERANCE, drawn
from flowpolicy.policy.exporting import export
from flowpolicy.policy.graph import ActGraph
from tests.agents.seeing import agent_of
from tests.pictures import CAMERAS, SPEC

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason="the extra 'onnx' is not installed",
)


def seeing(name="dm1"):
    """A policy with eyes, whose normaliser moves and scales what it sees and does."""
    policy = agent_of(name).policy()
    states, action = policy.normalizer.observation("state"), policy.normalizer.action_scaling
    for affine in (states, action):
        affine.scale.copy_(torch.linspace(0.5, 2.0, len(affine.scale)))
        affine.offset.copy_(torch.linspace(-1.0, 1.0, len(affine.offset)))
    return policy


def worst(policy, act, rows=2, seed=0):
    """Largest difference from the policy over a few decisions, in normalised units."""
    random, found = np.random.default_rng(seed), 0.0
    shape = (rows * policy.shapes.candidates, policy.contract.chunk, policy.contract.spec.action.size)
    for _ in range(4):
        obs = drawn(policy.contract, rows, random)
        noise = random.standard_normal(shape, np.float32)
        ours = policy.act_from(obs, noise, policy.contract.nfe)
        unit = policy.normalizer.action_scaling.scale.numpy()
        found = max(found, float(np.abs((act(obs, noise) - ours) * unit).max()))
    return found


@pytest.mark.parametrize("name", ["dm1", "flow_bc", "regression", "fql", "ifql"])
def test_the_folded_graph_is_the_policy(name):
    """States keep their scale; what pictures became has none."""
    policy = seeing(name)
    if reason := policy.config.sampler.interpreted or policy.config.sampler.live:
        pytest.skip(reason)
    graph = ActGraph(policy, policy.contract.nfe)
    assert graph.names == ("obs", "noise", *CAMERAS)

    @torch.no_grad()
    def act(obs, noise):
        return graph(*map(torch.from_numpy, (obs["state"], noise, *(obs[key] for key in CAMERAS)))).numpy()

    assert worst(policy, act) < 2e-5


@needs_onnx
def test_onnx_decides_from_pixels_and_counts_the_encoder_once(tmp_path):
    policy = seeing()
    policy.save(tmp_path / "run")
    assert export(policy, "onnx", tmp_path / "onnx", batches=(1, 2)) < TOLERANCE
    engine = load_engine(tmp_path / "onnx", "onnx", batches=(1, 2))
    assert worst(policy, engine.act) < 2e-5
    assert worst(policy, engine.act, rows=1) < 2e-5
    card = (tmp_path / "onnx" / "card.md").read_text()
    assert "`front_image`, `wrist_image`, pictures of their own" in card and "All float32 but pictures" in card
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(tmp_path / "onnx" / "batch_1.onnx"))
    types = {each.name: each.type.tensor_type.elem_type for each in model.graph.input}
    assert [types[key] for key in CAMERAS] == [onnx.TensorProto.UINT8] * 2
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in policy.modules())
    assert sum(node.op_type == "Conv" for node in model.graph.node) == layers  # every camera is seen once


def test_what_an_engine_refuses(tmp_path):
    policy = seeing()
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "eager")
    assert worst(policy, engine.act, rows=1) == 0
    obs = drawn(policy.contract, 1, np.random.default_rng(0))
    noise = engine.noise(1, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="the pictures 'front_image' are of float32"):
        engine.act(obs | {"front_image": obs["front_image"].astype(np.float32)}, noise)
    with pytest.raises(ConfigError, match="observation 'wrist_image' has shape"):
        engine.act(obs | {"wrist_image": obs["wrist_image"][:, :, :-1]}, noise)
    with pytest.raises(ConfigError, match="'front_image' is missing"):
        engine.act({"state": obs["state"], "wrist_image": obs["wrist_image"]}, noise)
    with pytest.raises(ConfigError, match="the NumPy engine has no convolutions"):
        load_engine(tmp_path, "numpy")


def test_a_policy_of_pictures_alone_has_a_graph():
    spec = dataclasses.replace(SPEC, observation={key: SPEC.observation[key] for key in CAMERAS})
    config = Regression(chunk=4, execute=4, encoder=VisionEncoder(SmallConv(width=4, keypoints=4, feature=4), width=4))
    agent = config.build(
        Contract(spec, history=1, chunk=4, execute=4, nfe=1), Normalizer({}, 2), steps=9, seed=0, compile=False
    )
    policy = agent.policy()
    graph = ActGraph(policy, 1)
    assert graph.names == ("noise", *CAMERAS)

    def act(obs, noise):
        return graph(*map(torch.from_numpy, (noise, *(obs[key] for key in CAMERAS)))).detach().numpy()

    assert worst(policy, act) < 2e-5


def test_the_floor_of_a_policy_that_sees_holds_its_convolutions():
    policy = seeing()
    found = convolutions(policy, 1, 2)
    layers = [module for module in policy.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(each[1] for each in found) == sorted(list(layer.weight.shape) for layer in layers)
    assert all(each[0][0] == 2 for each in found) and products(policy, 1, 2)
    torch_convolutions(found)()
