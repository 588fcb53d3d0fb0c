"""The protocols between rooms: agents, environments and the configs that build them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from numpy.typing import NDArray

from flowpolicy.core.spec import Contract, Spec

if TYPE_CHECKING:
    import torch  # seconds and 200 MB of every simulator process, which imports this file and needs neither

    from flowpolicy.core.columns import Columns

    Metrics = dict[str, torch.Tensor]
else:
    Metrics = dict
"""Scalars of one update, still on the device: reading them is the logger's business."""

Observation = dict[str, NDArray[Any]]
"""Observation of n environments: name -> (n, *shape) float32, pictures uint8."""


@runtime_checkable
class AgentConfig(Protocol):
    """A frozen dataclass in ``agents/`` that names an algorithm and its options: the ``agent`` of an experiment."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def needs(self) -> str:
        """What its batches are: 'windows' (imitation), 'transitions' (values) or 'groups' (post-training)."""

    @property
    def history(self) -> int:
        """Observations per decision."""

    @property
    def chunk(self) -> int:
        """Actions per decision."""

    @property
    def execute(self) -> int:
        """Actions of a chunk that are executed before the next decision."""

    @property
    def nfe(self) -> int:
        """Network evaluations per chunk."""

    @property
    def previous(self) -> bool:
        """Whether windows come with the actions before them."""

    @property
    def horizon(self) -> int:
        """Rewards that a transition sums; 0 for as many as a chunk has actions."""

    def build(
        self,
        contract: Contract,
        normalizer: Any,
        *,
        steps: int,
        seed: int,
        compile: bool,
        device: torch.device | str,
        **start: Any,
    ) -> Agent:
        """The agent before its first update.

        Args:
            contract: what the policy is for.
            normalizer: fitted on the training data (:class:`flowpolicy.data.normalize.Normalizer`).
            steps: planned updates.
            seed: of the initial weights.
            compile: compile the losses and their gradient.
            device: where to train.
            start: ``base`` (a policy) and ``groups`` where ``needs`` is 'groups'; nothing otherwise.

        """


@runtime_checkable
class Agent(Protocol):
    """An algorithm in training. One file in ``agents/`` per algorithm."""

    config: Any
    policy_config: Any
    """What rebuilding the policy takes; written into the checkpoint's ``config.json``."""

    @property
    def stopped(self) -> bool:
        """Whether it is done before its planned updates are."""

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> Metrics:
        """One gradient step. Tensors only: no host synchronisation, no draw from a global generator."""

    def policy(self) -> Any:
        """The deployable policy with the averaged weights (:class:`flowpolicy.policy.Policy`)."""

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything that the next update depends on, as ``{file stem: {name: tensor}}``."""

    def load_state_dict(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Inverse of :meth:`state_dict`; strict."""


class BatchSource(Protocol):
    """Where batches come from. One that subclasses this holds nothing that a checkpoint would have to keep."""

    @property
    def at_boundary(self) -> bool:
        """Whether a checkpoint of this moment would hold everything."""
        return True

    def draw(self, generator: torch.Generator) -> Columns:
        """A batch; the generator is the only source of randomness."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """JSON values that :meth:`restore` needs."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after :meth:`state`."""
        return None  # noqa: RET501, an empty body would be abstract

    def beside(self) -> BatchSource:
        """A source of the same batches for another generator; one that holds nothing serves several."""
        return self


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

    Pictures need not be part of the observations that ``reset`` and ``step`` return: drawing them costs more than a
    step, and a policy that executes four actions of a chunk sees one of four. ``look`` takes those that are wanted.

    ``reset`` takes *plan indices*: index i is always the same initial state, whatever the number of
    slots or workers and whenever other episodes end.
    """

    spec: Spec
    num_envs: int

    def reset(self, indices: Sequence[int], slots: Sequence[int]) -> Observation:
        """Start the initial states ``indices`` in ``slots``; observations in the same order."""

    def step(self, action: NDArray[Any], slots: Sequence[int]) -> Step:
        """Step ``slots`` with ``action`` (len(slots), a) in environment units; results in the same order."""

    def look(self, slots: Sequence[int]) -> Observation:
        """Pictures of ``slots`` at this moment, for those streams of the spec that ``step`` leaves out."""

    def render(self, slot: int) -> NDArray[Any]:
        """(height, width, 3) uint8 picture of one slot, for people."""

    def close(self) -> None:
        """Stop the workers."""
