"""One suite that every agent runs through, whether it clones behaviour or learns values."""

from __future__ import annotations

import pytest
import torch

from flowpolicy.agents.base import compiled_loss
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.normalize import Normalizer, NormalizerConfig
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler

from ..conftest import repeat
from .uninstrumented import uninstrumented


def build(config, path, *, steps=50, seed=0, compile=False):
    """An agent on the file ``path`` and the sampler that it needs."""
    dataset = load_dataset(DataConfig(path=str(path)))
    spec = Spec(
        {k: ObservationSpec(v.shape) for k, v in dataset.spec.observation.items()}, ActionSpec(dataset.spec.action.size)
    )
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    normalizer = Normalizer.fit(dataset, NormalizerConfig())
    agent = config.build(contract, normalizer, steps=steps, seed=seed, compile=compile)
    if config.needs == "windows":
        return agent, WindowSampler(dataset, config.history, config.chunk, 32, previous=config.previous)
    return agent, TransitionSampler(dataset, config.history, config.chunk, 32, horizon=config.horizon)


def flat(state):
    return {f"{file}/{name}": value.clone() for file, tensors in state.items() for name, value in tensors.items()}


def check_compiled(config, path):
    """The compiled loss teaches what the eager one does, and reads nothing that changes."""
    with uninstrumented(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_loss, "BACKEND", "aot_eager")
        learned = []
        for compile in (False, True):
            agent, windows = build(config, path, compile=compile)
            draw, noise = torch_generator(0, "draw"), torch_generator(0, "noise")
            for _ in range(4):
                agent.update(windows.draw(draw), noise)
            learned.append(flat(agent.state_dict()))
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=1e-4, atol=1e-5)


def check_agent(config, path, *, compiled=True):
    """Learns, compiled as well as not, acts, is reproducible by seed and resumes bit for bit.

    ``compiled``: off where test_compiled_losses.py compares the agent already.
    """
    if compiled:
        check_compiled(config, path)
    agent, windows = build(config, path)
    draw, noise = torch_generator(0, "draw"), torch_generator(0, "noise")
    torch.manual_seed(1)
    global_state = torch.random.get_rng_state()
    start = flat(agent.state_dict())
    losses = repeat(lambda: float(agent.update(windows.draw(draw), noise)["loss"]), 20)
    assert torch.equal(torch.random.get_rng_state(), global_state), "an update drew from the global generator"
    trained = flat(agent.state_dict())
    # The normaliser is fitted, not trained, and its limits are infinite where it does not clamp.
    learned = {name: value for name, value in trained.items() if not name.startswith("normalizer/")}
    assert all(torch.isfinite(value).all() for value in learned.values())
    moved = [name for name in start if name.startswith("weights/") and not torch.equal(start[name], trained[name])]
    assert moved == [name for name in start if name.startswith("weights/")], "a weight never moved"

    streams = draw.get_state(), noise.get_state()
    uninterrupted = float(agent.update(windows.draw(draw), noise)["loss"])
    other, _ = build(config, path, seed=9)
    other.load_state_dict({f: {n: trained[f"{f}/{n}"] for n in t} for f, t in agent.state_dict().items()})
    draw.set_state(streams[0])
    noise.set_state(streams[1])
    assert float(other.update(windows.draw(draw), noise)["loss"]) == uninterrupted
    for name, value in flat(agent.state_dict()).items():
        assert torch.equal(value, flat(other.state_dict())[name]), name

    policy = agent.policy()
    obs = {key: torch.randn(3, config.history, *spec.shape) for key, spec in policy.contract.spec.observation.items()}
    chunk = policy.act(obs, torch_generator(0))
    assert chunk.shape == (3, config.chunk, 2)
    assert policy.evaluations == config.nfe
    assert torch.equal(chunk, policy.act(obs, torch_generator(0)))
    return losses
