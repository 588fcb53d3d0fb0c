"""What the public implementations call the options of our agents: the same work on both sides of a comparison."""

from __future__ import annotations

from typing import Any

from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.core.errors import ConfigError


def fql_options(config: Any) -> dict[str, Any]:
    """Options of ``agents/fql.py`` of github.com/seohongpark/fql.

    Raises:
        ConfigError: the agent is none that it can be.

    """
    if not isinstance(config, FQL) or config.solver != "euler" or config.n_step != 1 or not _plain(config):
        raise ConfigError(
            "the peer cannot run this preset",
            expected="FQL with the net 'plain', no encoder, Euler steps, single actions and rewards and two critics",
        )
    return {**_common(config), "alpha": config.alpha}


def fisher_options(config: Any) -> dict[str, Any]:
    """Options of ``agents/fidec.py`` of github.com/ARC0127/Fisher-Decorator, with the settings of its scripts.

    Raises:
        ConfigError: the agent is none that it can be.

    """
    released = isinstance(config, Fisher) and config.base == "euler" and config.metric.mode == "proxy"
    if not released or config.metric.normalise != "state" or config.n_step != 1 or not _plain(config, "mlp"):
        raise ConfigError(
            "the peer cannot run this preset",
            expected="the Fisher Decorator as it was released: --agent.base euler --agent.metric.mode proxy "
            "--agent.metric.normalise state, single actions and rewards, no encoder and two critics",
        )
    return {
        **_common(config),
        "alpha": config.initial_weight,
        "use_lagrange": True,
        "target_divergence": config.budget,
        "num_fisher_samples": config.metric.samples,
        "fisher_t": config.metric.time,
        "fisher_t_width": 0.05,
        "fisher_damping": config.metric.damping,
    }


def _plain(config: Any, *nets: str) -> bool:
    """Whether the networks are of one width, and decisions of one observation and one action."""
    sizes = config.history, config.chunk, config.critic.members, config.critic.held_out
    return type(config.net).__name__.lower() in ("plain", *nets) and config.encoder.width == 0 and sizes == (1, 1, 2, 0)


def _common(config: Any) -> dict[str, Any]:
    return {
        "actor_hidden_dims": [config.net.width] * config.net.depth,
        "value_hidden_dims": [config.critic.width] * config.critic.depth,
        "layer_norm": config.critic.layer_norm,
        "q_agg": config.critic.aggregate,
        "lr": config.critic_optimizer.lr,
        "discount": config.discount,
        "tau": config.tau,
        "flow_steps": config.flow_steps,
        "normalize_q_loss": config.normalize_q,
    }
