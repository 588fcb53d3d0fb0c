"""Judges: frozen ensembles that score action chunks, and what keeps a policy honest about them.

A group file carries two, ``train`` and ``held_out``. The first stands for the rewards that a policy is trained on,
the second is independent of it (other networks, fitted to other states where they are fitted here) and trains
nothing. docs/methods/gdro.md#corrected-score says what is made of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.agents.groups.group_file import StoredJudge
from flowpolicy.core.config import decode, encode
from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import first_weights, torch_generator
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import Critic, CriticConfig

_KINDS: dict[str, type] = {"critic": CriticConfig}
FIT = CriticConfig(width=128, depth=2, members=4)
"""Ensemble that is fitted to the scores of a group file."""


class Judge(nn.Module):
    """Scores chunks by the lower confidence bound of an ensemble, ``mean - caution * deviation``.

    Args:
        config: the ensemble.
        shapes: width of each observation key, in the order of concatenation.
        history: o, observations that it sees: the newest ones of what it is given.
        chunk: h, actions that it sees: the first ones of what it is given.
        action: size of an action.
        caution: deviations of the members that are subtracted; a single member has none.

    """

    def __init__(
        self, config: CriticConfig, shapes: Mapping[str, int], history: int, chunk: int, action: int, caution: float
    ) -> None:
        super().__init__()
        self.config, self.shapes = config, dict(shapes)
        self.history, self.chunk, self.action, self.caution = history, chunk, action, caution
        self.normalizer = Normalizer(shapes, action)
        observation = {name: ObservationSpec((width,)) for name, width in shapes.items()}
        self.critic = config.build(observation, history, chunk * action)

    @torch.no_grad()
    def forward(self, obs: Mapping[str, Tensor], chunk: Float[Tensor, "b h a"]) -> Float[Tensor, " b"]:
        """Score of chunks in environment units, at observations name -> (b, o, d)."""
        values = self.critic(*self.inputs(obs, chunk))
        return values.mean(0) - self.caution * values.std(0, unbiased=False)

    def inputs(self, obs: Mapping[str, Tensor], chunk: Tensor) -> tuple[Streams, Tensor]:
        """What the ensemble is shown: normalised observations and chunks."""
        recent = self.normalizer.obs({name: obs[name][:, -self.history :] for name in self.shapes})
        return recent, self.normalizer.action(chunk[:, : self.chunk]).clamp(-1, 1)

    def store(self) -> StoredJudge:
        """As a group file holds it."""
        sizes = {name: getattr(self, name) for name in ("shapes", "history", "chunk", "action", "caution")}
        return StoredJudge({**sizes, "critic": encode(self.config, _KINDS)}, dict(self.state_dict()))


def load_judge(stored: StoredJudge) -> Judge:
    """Inverse of :meth:`Judge.store`.

    Raises:
        DataError: the stored config or tensors do not make a judge.

    """
    try:
        options = dict(stored.config)
        with first_weights(0):  # which are replaced
            judge = Judge(decode(options.pop("critic"), _KINDS, "judge"), **options)
        judge.load_state_dict(stored.tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"a judge of the group file cannot be rebuilt: {error}",
            fix="make the groups again with this version of flowpolicy",
        ) from error
    return judge.eval().requires_grad_(False)


def critic_judges(critic: Critic, normalizer: Normalizer, shapes: Mapping[str, int], **sizes: Any) -> dict[str, Judge]:
    """Judges of a trained critic: its members, and those that it held out (absent if it has none).

    Args:
        critic: of a value-learning agent.
        normalizer: the one that the agent was trained with.
        shapes: width of each observation key of that agent, in its order.
        **sizes: ``history``, ``chunk``, ``action`` and ``caution`` of :class:`Judge`.

    """
    config, found = critic.config, {}
    for name, first, count in (("train", 0, config.members), ("held_out", config.members, config.held_out)):
        if count:
            judge = Judge(dataclasses.replace(config, members=count, held_out=0), shapes, **sizes)
            own = {key: value[first : first + count] for key, value in critic.state_dict().items()}
            judge.critic.load_state_dict(own)
            judge.normalizer.load_state_dict(normalizer.state_dict())
            found[name] = judge.eval().requires_grad_(False)
    return found


def fit_judge(
    obs: Mapping[str, Float[Tensor, "n o d"]],
    action: Float[Tensor, "n k h a"],
    score: Float[Tensor, "n k"],
    normalizer: Normalizer,
    *,
    caution: float,
    seed: int,
    config: CriticConfig = FIT,
    epochs: int = 20,
) -> Judge:
    """Fit an ensemble to the scores of groups, as deviations from the mean of their group.

    The value of the state, which no candidate can change, is thus no part of what it must explain.

    Args:
        obs: observation histories of the states.
        action: candidates.
        score: their scores.
        normalizer: scaling of observations and actions.
        caution: see :class:`Judge`.
        seed: of weights and batches.
        config: the ensemble; its members differ in their initial weights and their batches.
        epochs: passes over the candidates per member, in batches of 256 by AdamW.

    """
    n, k, h, a = action.shape
    shapes = {name: value.shape[2] for name, value in obs.items()}
    with first_weights(seed, "judge"):
        judge = Judge(config, shapes, next(iter(obs.values())).shape[1], h, a, caution)
    judge.normalizer.load_state_dict(normalizer.state_dict())
    states = {key: v.repeat_interleave(k, 0) for key, v in obs.items()}
    inputs = judge.critic.rows(*judge.inputs(states, action.flatten(0, 1)))
    target = (score - score.mean(1, keepdim=True)).flatten()
    unit = target.square().mean().sqrt().clamp(min=1e-6)
    generator = torch_generator(seed, "judge batches")
    optimizer = torch.optim.AdamW(judge.critic.parameters(), lr=1e-3, weight_decay=1e-2)
    batch = min(256, n * k)
    for _ in range(epochs * math.ceil(n * k / batch)):
        index = torch.randint(n * k, (config.members, batch), generator=generator)
        values = judge.critic.members_on(inputs[index])
        loss = (values - (target / unit)[index]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # back to the unit of the scores
        judge.critic.head.weight.mul_(unit)
        judge.critic.head.bias.mul_(unit)
    return judge.eval().requires_grad_(False)
