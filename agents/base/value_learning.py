"""What value-learning agents share: critic and target, the temporal-difference loss, and the shape of one update.

An algorithm adds ``draw`` (everything random, from the given generator) and ``losses`` (pure and compiled: a
dictionary of losses, each of which reaches the networks of one optimiser). Networks that only training needs are
made in ``build_networks``; ``groups`` says which optimiser trains which networks. `agents/offline/fql.py`
is the shortest complete example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from flowpolicy.agents.base.agent import TrainedAgent, has_rows
from flowpolicy.agents.base.optimizer import Adam, Group, parameters_of
from flowpolicy.core import keys, ranks
from flowpolicy.core.columns import plain
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Count, Decay, Few, Share, SomeShare, require_ranges
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams
from flowpolicy.nets.critic import Critic, CriticConfig, polyak
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.vision import Encoder
from flowpolicy.policy.actor import Net


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """Options of every value-learning agent."""

    references: ClassVar[tuple[Reference, ...]] = ()
    """Publications that ``flowpolicy cite`` lists."""
    needs: ClassVar[str] = "transitions"
    previous: ClassVar[bool] = False
    compile_from: ClassVar[int | None] = 4_000
    """Planned updates from which compiling pays on a CPU, see :mod:`flowpolicy.train.compiling`; None: never."""
    net: Net = Plain()
    """Trunk of the actor and of the behaviour flow."""
    encoder: Encoder = StateEncoder(width=0)
    """Encoder of the observation history in front of actor and flow; width 0, as in the FQL family, is none. Where it
    sees pictures, critic and value network have one of the same kind of their own."""
    critic: CriticConfig = CriticConfig()
    """Ensemble of Q networks."""
    actor_optimizer: Adam = Adam()
    """Optimiser of the actor and of the behaviour flow."""
    critic_optimizer: Adam = Adam()
    """Optimiser of the critic and of the value network."""
    discount: Share = 0.99
    """Discount per environment step."""
    tau: SomeShare = 0.005
    """Polyak rate of the target critic, after every update."""
    n_step: Count = 1
    """Rewards that a target sums before it bootstraps; never fewer than a chunk has."""
    ema: Decay = 0.0
    """Decay of the averaged weights that the policy uses; 0, as in the FQL family, averages nothing."""
    history: Few = 1
    """Observations per decision."""
    chunk: Few = 1
    """Actions per decision; the critic values whole chunks."""
    execute: Few = 1
    """Actions of a chunk that are executed before the next decision."""

    def __post_init__(self) -> None:
        require_ranges(self, "--agent.")

    @property
    def horizon(self) -> int:
        """Rewards that a target sums: the chunk, or ``n_step`` where that is more."""
        return max(self.chunk, self.n_step)


class Transition(NamedTuple):
    """A batch as the losses see it: normalised, states packed."""

    obs: Streams
    """Observation histories."""
    action: Float[Tensor, "b h a"]
    """Chunk of the data, in [-1, 1]."""
    valid: Bool[Tensor, "b h"]
    """False for actions past the episode's end."""
    returns: Float[Tensor, " b"]
    """Discounted sum of the rewards before the bootstrap."""
    discount: Float[Tensor, " b"]
    """``gamma^n mask``, the factor of the bootstrap value."""
    next_obs: Streams
    """Observation histories where the return bootstraps."""
    next_action: Float[Tensor, "b a"]
    """Action of the data there; meaningless where ``discount`` is 0."""
    exact: Float[Tensor, " b"]
    """0 where the episode was cut off inside the chunk: fewer of its actions count than the critic is shown."""


class ValueAgent(TrainedAgent):
    """Base of the value-learning agents."""

    config: ValueConfig
    critic: Critic

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.target = self.critic.target()

    @override
    def _build(self) -> None:
        contract = self.contract
        observation, action = contract.spec.observation, contract.chunk * contract.spec.action.size
        see = self.config.encoder
        if self.actor.critic:  # under that name alone: who changes weights by name would change these twice
            object.__setattr__(self, "critic", self.actor.critic)
        else:
            self.critic = self.config.critic.build(observation, contract.history, action, see)
        self.build_networks()

    @property
    @override
    def averaging(self) -> float | None:
        return self.config.ema or None

    @override
    def trained(self) -> dict[str, Group]:
        return {
            name: Group(options, parameters_of({module: self.get_submodule(module) for module in modules}))
            for name, (options, modules) in self.groups().items()
        }

    def build_networks(self) -> None:
        """Add the networks that only training needs, as attributes."""

    def groups(self) -> dict[str, tuple[Adam, tuple[str, ...]]]:
        """Name of each optimiser -> (options, names of the submodules that it trains)."""
        config = self.config
        return {
            "critic": (config.critic_optimizer, ("critic",)),
            "actor": (config.actor_optimizer, ("actor.encoder", "actor.net")),
        }

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> Any:
        """Everything random in one update: a tensor, or a named tuple of tensors."""
        raise NotImplementedError

    def losses(self, t: Transition, draws: Any, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Losses by name, to be summed, and further metrics. Each loss reaches the networks of one optimiser."""
        raise NotImplementedError

    def loss(self, batch: dict[str, Any], draws: Any, **switches: bool) -> tuple[Tensor, Metrics]:
        """Sum of the losses, and the metrics, of one batch in environment units."""
        losses, metrics = self.losses(self.transition(batch), draws, **switches)
        total = torch.stack(list(losses.values())).sum()
        named = {f"{name}_loss": value.detach() for name, value in losses.items()}
        return total, {"loss": total.detach(), **named, **metrics}

    def transition(self, batch: dict[str, Any]) -> Transition:
        """Normalise a batch; sum its rewards, discounted."""
        config = self.config
        reward, mask, steps = batch[keys.REWARD], batch[keys.MASK], batch[keys.STEPS]
        powers = config.discount ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)
        return Transition(
            obs=self.streams(batch[keys.OBS]),
            action=self.normalizer.action(batch[keys.ACTION]).clamp(-1, 1),
            valid=batch[keys.VALID],
            returns=(reward * powers).sum(1),
            discount=config.discount**steps * mask,
            next_obs=self.streams(batch[keys.NEXT_OBS]),
            next_action=self.normalizer.action(batch[keys.NEXT_ACTION]).clamp(-1, 1),
            exact=torch.maximum((steps >= config.chunk).to(mask.dtype), 1 - mask),
        )

    def critic_loss(self, t: Transition, target: Float[Tensor, " b"]) -> tuple[Float[Tensor, ""], Metrics]:
        """Mean squared error of every member, and of those held out, against the returns ``target``.

        The mean over rows and members, as in the FQL family; rows whose chunk was cut off do not count.
        """
        members = self.config.critic.members
        values = self.critic(t.obs, t.action)
        square, count = ranks.totals(((values - target).square() * t.exact).sum(1), t.exact.sum())
        error = square / count.clamp(min=1)
        metrics = {"q_mean": values[:members].mean().detach(), "target_mean": target.mean()}
        if self.config.critic.held_out:
            metrics["q_held_out"] = values[members:].mean().detach()
        return error.sum() / members, metrics

    def bootstrap(self, t: Transition, value: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``returns + gamma^n mask value``: what the critic learns. Each row depends on that row alone."""
        return (t.returns + t.discount * value).detach()

    @override
    def arguments(self, batch: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, ...]:
        return plain(batch), self.draw(batch[keys.ACTION], generator)

    @override
    def own(self, arguments: tuple[Any, ...], rows: int, mine: slice) -> tuple[Any, ...]:
        def part(value: Any) -> Any:
            if not has_rows(value, rows):
                return value
            return value.unflatten(0, (rows, -1))[mine].flatten(0, 1)  # several draws for a row are neighbours

        found: tuple[Any, ...] = pytree.tree_map(part, arguments)
        return found

    @override
    def advance(self, loss: Tensor, metrics: Metrics, rows: int, **switches: bool) -> Metrics:
        self.optimizer.apply(rows)
        self.follow(**switches)
        return metrics

    def follow(self, **switches: bool) -> None:
        """Move the targets towards the updated networks; ``switches`` are those of the update."""
        polyak(self.target, self.critic, self.config.tau)

    def _training(self) -> dict[str, Tensor]:
        """Weights and buffers that are in no other file: critic, target, behaviour flow."""
        skip = ("actor.", "normalizer.", "critic.") if self.actor.critic else ("actor.", "normalizer.")
        return {name: value for name, value in nn.Module.state_dict(self).items() if not name.startswith(skip)}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # type: ignore[override]
        """Files of a checkpoint; ``training`` holds what the policy does not need."""
        return {**super().state_dict(), "training": self._training()}

    @override
    def _load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        super()._load(state)
        own = self._training()
        if wrong := own.keys() ^ state["training"].keys():
            raise KeyError(f"missing or unknown in the training state: {', '.join(sorted(wrong))}")
        for name, value in own.items():
            value.copy_(state["training"][name])
