"""A chaotic environment and a small network: a wrong bit anywhere becomes a different outcome."""

import dataclasses

import numpy as np
import torch
from torch import nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import Step
from flowpolicy.core.spec import ActionSpec, Contract, ImageSpec, ObservationSpec, Spec
from flowpolicy.evaluate.rollout import Episode

SPEC = Spec(
    observation={"state": ObservationSpec((3,))},
    action=ActionSpec(size=2),
    env_id="fake/Chaos",
    horizon=30,
    success="the orbit passes 0.97",
)


class ChaosEnv:
    """Three coupled logistic maps pushed by the action; episodes end after 12 to 30 steps."""

    spec = SPEC

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.orbit = np.zeros((num_envs, 3))
        self.left = np.zeros(num_envs, dtype=int)
        self.calls: list[tuple[str, list[int], list[int]]] = []
        self.rendered: list[int] = []

    def reset(self, indices, slots):
        self.calls.append(("reset", list(indices), list(slots)))
        for index, slot in zip(indices, slots, strict=True):
            generator = np.random.default_rng(index)
            self.orbit[slot] = generator.uniform(0.1, 0.9, 3)
            self.left[slot] = generator.integers(12, 31)
        return {"state": self.orbit[list(slots)].astype(np.float32)}

    def step(self, action, slots):
        slots = list(slots)
        push = 0.02 * np.tanh(action.astype(np.float64).sum(axis=1, keepdims=True))
        self.orbit[slots] = np.clip(3.97 * self.orbit[slots] * (1 - self.orbit[slots]) + push, 0.01, 0.985)
        self.left[slots] -= 1
        orbit = self.orbit[slots]
        over = self.left[slots] <= 0
        return Step(
            obs={"state": orbit.astype(np.float32)},
            reward=orbit.sum(axis=1),
            terminated=np.zeros(len(slots), dtype=bool),
            truncated=over,
            success=orbit[:, 0] * orbit[:, 1] > 0.90,
        )

    def render(self, slot):
        self.rendered.append(slot)
        return np.full((33, 47, 3), int(255 * self.orbit[slot, 0]), dtype=np.uint8)

    def close(self):
        pass


SEEN = dataclasses.replace(SPEC, observation={**SPEC.observation, "eye_image": ImageSpec((4, 5, 3))})
"""The same with a camera."""


class SeeingChaosEnv(ChaosEnv):
    """The orbit as a picture: with every observation (``eager``), or when looked at."""

    spec = SEEN

    def __init__(self, num_envs: int, eager: bool = False) -> None:
        super().__init__(num_envs)
        self.eager, self.looked = eager, 0

    def look(self, slots):
        self.looked += len(slots)
        scaled = (1e9 * self.orbit[list(slots)]).astype(np.int64)[:, None, None, :]
        return {"eye_image": (scaled // np.arange(1, 21).reshape(4, 5, 1) % 256).astype(np.uint8)}

    def reset(self, indices, slots):
        obs = super().reset(indices, slots)
        return obs | self.look(slots) if self.eager else obs

    def step(self, action, slots):
        step = super().step(action, slots)
        return dataclasses.replace(step, obs=step.obs | self.look(slots)) if self.eager else step


class NetworkPolicy:
    """Euler steps of an MLP. Keeps what it was shown."""

    def __init__(self, history=2, chunk=4, execute=3, nfe=2, supports=(1, 2, 4), spec=SPEC) -> None:
        self.contract = Contract(spec=spec, history=history, chunk=chunk, execute=execute, nfe=nfe)
        self.evaluations, self.supports = 0, supports
        self.seen: list[torch.Tensor] = []
        generator = torch.Generator().manual_seed(5)
        width = 128
        self.net = nn.Sequential(
            nn.Linear(3 * history + 2 * chunk, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 2 * chunk),
        )
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    @torch.inference_mode()
    def act(self, obs, generator, nfe=None):
        nfe = self.contract.nfe if nfe is None else nfe
        if nfe not in self.supports:
            raise ConfigError(f"cannot act in {nfe} evaluations")
        state = obs["state"]
        if "eye_image" in obs:  # every pixel of every picture decides
            state = state + 1e-4 * obs["eye_image"].float().flatten(2).cumsum(2)[..., -3:]
        self.seen.append(state.clone())
        x = torch.randn(state.shape[0], 2 * self.contract.chunk, generator=generator)
        for _ in range(nfe):
            self.evaluations += 1
            x = x + self.net(torch.cat([state.flatten(1), x], dim=1)) / nfe
        return x.view(-1, self.contract.chunk, 2)


def outcome(episode: Episode):
    """Everything in an episode but wall time and pictures."""
    return (
        episode.index,
        episode.policy_seed,
        episode.success_step,
        episode.return_,
        episode.length,
        episode.chunks,
        episode.evaluations,
    )


def episode(
    index=0, success_step=None, return_=0.0, length=10, chunks=2, evaluations=2, seconds=(1e-3, 2e-3), frames=()
):
    counts = (success_step, return_, length, chunks, evaluations)
    return Episode(index, index + 100, *counts, decision_seconds=tuple(seconds), frames=tuple(frames))
