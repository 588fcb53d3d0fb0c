"""The protocols between rooms: agents, environments and the configs that build them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from flowpolicy.core.spec import Spec

if TYPE_CHECKING:
    import torch  # seconds and 200 MB of every simulator process, which imports this file and needs neither
    from tensordict import TensorDict

    Metrics = dict[str, torch.Tensor]
else:
    Metrics = dict
"""Scalars of one update, still on the device: reading them is the logger's business."""

Observation = dict[str, NDArray[Any]]
"""Observation of n environments: name -> (n, *shape) float32."""


@runtime_checkable
class Agent(Protocol):
    """An algorithm in training. One file in ``agents/`` per algorithm."""

    config: Any
    policy_config: Any
    """What rebuilding the policy takes; written into the checkpoint's ``config.json``."""

    def update(self, batch: TensorDict, generator: torch.Generator) -> Metrics:
        """One gradient step. Tensors only: no host synchronisation, no draw from a global generator."""

    def policy(self) -> Any:
        """The deployable policy with the averaged weights (:class:`flowpolicy.policy.Policy`)."""

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything that the next update depends on, as ``{file stem: {name: tensor}}``."""

    def load_state_dict(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Inverse of :meth:`state_dict`; strict."""


@dataclasses.dataclass
class Step:
    """What one environment step of n slots returns."""

    obs: Observation
    """Observations after the step, name -> (n, *shape)."""
    reward: NDArray[Any]
    """(n,) float64."""
    terminated: NDArray[Any]
    """(n,) bool: the task ended; bootstrapping stops."""
    truncated: NDArray[Any]
    """(n,) bool: the horizon was reached."""
    success: NDArray[Any]
    """(n,) bool: the success criterion of the spec holds now."""
    age: NDArray[Any] | None = None
    """(n,) int64: actions executed since the observations were taken; None where they are fresh."""


@runtime_checkable
class VecEnv(Protocol):
    """Several copies ("slots") of one environment.

    ``reset`` takes *plan indices*: index i is always the same initial state, whatever the number of
    slots or workers and whenever other episodes end.
    """

    spec: Spec
    num_envs: int

    def reset(self, indices: Sequence[int], slots: Sequence[int]) -> Observation:
        """Start the initial states ``indices`` in ``slots``; observations in the same order."""

    def step(self, action: NDArray[Any], slots: Sequence[int]) -> Step:
        """Step ``slots`` with ``action`` (len(slots), a) in environment units; results in the same order."""

    def render(self, slot: int) -> NDArray[Any]:
        """(height, width, 3) uint8 picture of one slot."""

    def close(self) -> None:
        """Stop the workers."""


@runtime_checkable
class EnvConfig(Protocol):
    """A frozen dataclass in ``envs/`` that names an environment."""

    def spec(self) -> Spec:
        """The spec, without creating (or even importing) the simulator."""

    def make(self, num_envs: int) -> VecEnv:
        """Create the environment with ``num_envs`` slots, in worker processes where that pays."""
