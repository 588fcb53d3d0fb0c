"""One training run as a value: what is trained on what, for how long, from which seed."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flowpolicy.core import keys
from flowpolicy.core.config import changed
from flowpolicy.core.devices import Precision
from flowpolicy.core.errors import ConfigError, ContractError, DataError, DataWarning
from flowpolicy.core.protocols import BatchSource
from flowpolicy.core.ranges import Count, Natural, Seed, Threads, require_ranges
from flowpolicy.core.spec import UNSTATED, Contract, Spec, library_versions
from flowpolicy.core.streams import Crop, Streams
from flowpolicy.data.dataset import DataConfig, Dataset, dataset_sha256, with_thumbnails
from flowpolicy.data.dataset_checks import doubtful_start
from flowpolicy.data.drawn_ahead import DrawnAhead
from flowpolicy.data.normalize import NormalizerConfig
from flowpolicy.data.remote_data import lies_elsewhere
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler
from flowpolicy.train.compiling import Compile
from flowpolicy.train.online_source import OnlineConfig

if TYPE_CHECKING:
    from flowpolicy.core.protocols import AgentConfig
else:
    AgentConfig = Any  # the command line and stored files take the class of the agent that is there

_AGENT = ("needs", "history", "chunk", "execute", "nfe", "previous", "horizon", "build")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides the weights of a run. Presets are values of this class."""

    agent: AgentConfig
    """Algorithm and its options."""
    env: str
    """Environment that the policy is meant for; its spec enters the contract. 'recorded' is that of the data, for those
    of a machine that nothing simulates."""
    base: str = ""
    """Run that is post-trained; it decides environment, network and scaling. Presets gdro-* only."""
    groups: str = ""
    """File of scored candidates of the base, from flowpolicy groups make. Presets gdro-* only."""
    data: DataConfig = DataConfig()
    """Training file."""
    normalizer: NormalizerConfig = NormalizerConfig()
    """Scaling of observations and actions, fitted once on the training file."""
    online: OnlineConfig = OnlineConfig()
    """Environment steps between the updates: see ``flowpolicy online``."""
    steps: Count = 10_000
    """Gradient updates."""
    batch_size: Count = 256
    """Windows per update."""
    seed: Seed = 0
    """Seeds the weights, the batches and the noise."""
    checkpoint_every: Count = 2_000
    """Updates between checkpoints; the last update always writes one."""
    keep_checkpoints: Natural = 3
    """Newest checkpoints that stay on the disk; 0 keeps all."""
    log_every: Count = 50
    """Updates between two rows of metrics.csv."""
    compile: Compile = "auto"
    """Compile loss and gradient into one graph, which takes up to minutes and a C++ compiler: 'on', 'off', or 'auto',
    which does so where the planned updates make up for it. 'parts' is 'off' with every operator in parts, as runs were
    trained before there was a choice. The three differ by round-off; a run keeps what it began with."""
    threads: Threads = 1
    """CPU threads. Part of the experiment: another number sums in another order. Several threads wait for each
    other in spin loops and stall beside any busy process; one thread per run and several runs do not."""
    device: str = "cpu"
    """'cpu' or a CUDA device."""
    precision: Precision = "fp32"
    """Of matrix products: 'fp32'; 'tf32' with ten bits of mantissa on GPUs of 2020 and later; 'bf16' with seven, on any
    device. Weights stay float32, and so do forward derivatives (MeanFlow) and what shifts are charged (fisher)."""
    capture: bool = False
    """Run every update as one CUDA graph: batch, losses, gradients, optimisers, averages and targets in one launch. The
    results are the same. On a GPU, for data that fit there; not tried on one yet."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.csv."""
    wandb: str = ""
    """Weights & Biases project; empty writes nothing."""
    dataset: str = dataclasses.field(default="", metadata={"written": "unless default"})
    """Published data set that these options are for, e.g. 'hopper-medium-v2', as presets of such names say: a training
    file that is named as another one is refused. Empty for any."""

    def with_(self, **changes: Any) -> Self:
        """A copy with other values.

        ::

            presets["dm1-lift"].with_(data="lift.hdf5", steps=2_000, agent={"chunk": 8, "net": {"width": 256}})

        Args:
            changes: field -> value; a dict changes fields of the configuration in that field, and a path as ``data``
                is that of the training file.

        Raises:
            ConfigError: there is no such field, or a value makes no sense.

        """
        if isinstance(changes.get("data"), (str, os.PathLike)):
            changes["data"] = {"path": os.fspath(changes["data"])}
        copy: Self = changed(self, changes)
        return copy

    def __post_init__(self) -> None:
        if isinstance(self.compile, bool):  # what the field was before
            object.__setattr__(self, "compile", "on" if self.compile else "off")
        require_ranges(self)
        agent = self.agent
        if lacking := [name for name in _AGENT if not hasattr(agent, name)]:
            raise ConfigError(
                f"the agent {type(agent).__name__} has no {', '.join(lacking)}",
                expected="what flowpolicy.core.protocols.AgentConfig lists",
            )
        if agent.execute > agent.chunk:
            raise ConfigError(
                f"--agent.execute {agent.execute}, --agent.chunk {agent.chunk}",
                expected="no more actions executed than a chunk has",
            )
        if not self.online.base and self.online != OnlineConfig():
            raise ConfigError("--online options without a run to continue", fix="flowpolicy online RUN")
        if self.online.base and agent.needs != "transitions":
            raise ConfigError(
                f"{type(agent).__name__} learns nothing from rewards, so that collecting episodes would not change it",
                expected="an agent with a critic, e.g. fql or fisher",
            )


def make_contract(experiment: Experiment, dataset: Dataset, env: Spec) -> Contract:
    """The contract of a run: the environment's spec, checked against the file, limited to the keys used.

    Raises:
        ContractError: file and environment disagree.
        DataError: the file lacks an observation key that is asked for.

    """
    keys = experiment.data.obs_keys or tuple(dataset.spec.observation)
    # How pictures were drawn is the file's affair: an environment draws what a policy was trained on.
    pictures = with_thumbnails(dataset)
    keys = (*keys, *(key for key in pictures if key not in keys))
    # An instruction is given, and no environment's to observe.
    given = {key: dataset.spec.observation[key] for key in dataset.spec.instructions if key in keys}
    unknown = [key for key in keys if key not in env.observation and key not in pictures and key not in given]
    if unknown:
        raise DataError(
            f"the environment '{experiment.env}' gives no observation {', '.join(unknown)}",
            expected=f"keys among {', '.join(env.observation)}",
            fix="--data.obs-keys KEY KEY ...",
        )
    offered = env.observation | pictures | given
    spec = dataclasses.replace(env, observation={key: offered[key] for key in keys})
    # With which arm and tool the task is done, only the recording knows.
    missing = {field: getattr(dataset.spec, field) for field in ("robot", "tool") if getattr(env, field) == UNSTATED}
    spec = dataclasses.replace(spec, **missing)
    agent, (file, accepted) = experiment.agent, _as_accepted(experiment, dataset, env)
    contract = Contract(
        spec=spec,
        history=agent.history,
        chunk=agent.chunk,
        execute=agent.execute,
        nfe=agent.nfe,
        dataset_id=experiment.data.path if lies_elsewhere(experiment.data.path) else dataset.path.name,
        dataset_sha256=dataset.sha256,
        dataset_filter=dataset.filter_key,
        versions=library_versions(),
        accepted=accepted,
        reward_scale=dataset.reward_scale,
    )
    fix = "train on data of this environment, or name the right --env"
    if file.reward_shift != env.reward_shift:
        fix = f"--data.reward-shift {env.reward_shift:g}, if this is data of {experiment.env}"
    elif words := [word for word, field in _ACCEPTABLE.items() if _differs(field, file, env)]:
        fix += f"; or, where you know that it makes no difference: --data.accept {' '.join(words)}"
    contract.require(file, f"the file {dataset.path}", fix)
    return contract


_ACCEPTABLE = {
    "env_version": "env_version",
    "frame": "action.frame",
    "controller": "action.controller",
    "robot": "robot",
}
"""Word of ``--data.accept`` -> field of a spec."""


def _as_accepted(experiment: Experiment, dataset: Dataset, env: Spec) -> tuple[Spec, tuple[str, ...]]:
    """What the file says, but for what is accepted, and that in lines.

    A simulator of the same minor version is accepted unasked, where all that is said of the action agrees.

    Raises:
        ContractError: the file says nothing of how its actions are executed.

    """
    file, accepted = _with_stated_shift(dataset, env), []
    # Where the environment's action has one meaning, the name of the environment says it.
    silent = file.action.convention == UNSTATED and file.action.controller == UNSTATED != env.action.controller
    if silent and "unstated" not in experiment.data.accept:
        raise ContractError(
            f"{dataset.path} does not say how its actions are executed (unstated: delta or absolute, frame, "
            f"controller), so nothing could be compared with the environment '{experiment.env}'",
            expected=f"{env.action.convention}, {env.action.frame}, {env.action.units}, {env.action.controller}",
            fix="if you know that they are executed so: --data.accept unstated",
        )
    if silent:
        accepted.append("action: not said by the file")
    same_minor = file.env_version.split(".")[:2] == env.env_version.split(".")[:2] and not silent
    for word, field in _ACCEPTABLE.items():
        if _differs(field, file, env) and (word in experiment.data.accept or (word == "env_version" and same_minor)):
            accepted.append(f"{field}: {_value(field, env)!r} against {_value(field, file)!r}")
            file = _without(field, file)
    doubts = [f"accepted although it differs: {line}" for line in accepted]
    if doubt := doubtful_start(dataset, env):
        doubts.append(doubt)
    for doubt in doubts:
        warnings.warn(f"{dataset.path}: {doubt}", DataWarning, stacklevel=3)
    return file, tuple(accepted)


def _without(field: str, spec: Spec) -> Spec:
    unsaid: dict[str, Any] = {field.removeprefix("action."): UNSTATED}
    if field.startswith("action."):
        return dataclasses.replace(spec, action=dataclasses.replace(spec.action, **unsaid))
    return dataclasses.replace(spec, **unsaid)


def _value(field: str, spec: Spec) -> str:
    return str(functools.reduce(getattr, field.split("."), spec))


def _differs(field: str, file: Spec, env: Spec) -> bool:
    values = {_value(field, file), _value(field, env)} - {UNSTATED}
    return len(values) > 1


def _with_stated_shift(dataset: Dataset, env: Spec) -> Spec:
    """What the file is, which may have been shifted before: rewards of -1 and 0 have been, by the convention of -1."""
    rewards, scale = dataset.steps[keys.REWARD], dataset.reward_scale
    shifted = bool(((rewards == -scale) | (rewards == 0)).all() and (rewards == -scale).any())
    if env.reward_shift == -1 and dataset.spec.reward_shift == 0 and shifted:
        return dataclasses.replace(dataset.spec, reward_shift=-1.0)
    return dataset.spec


Reading = Callable[[Streams], Streams] | None
"""How an agent reads observations, see :class:`flowpolicy.data.windows.WindowSampler`."""
Crops = Mapping[str, Crop] | None
"""Windows of pictures that an agent trains on, likewise."""


def make_sampler(experiment: Experiment, dataset: Dataset, streams: Reading = None, crops: Crops = None) -> BatchSource:
    """The source of batches for the agent, whose ``needs`` is 'windows' or 'transitions'."""
    if experiment.agent.needs == "windows":
        return _ahead(window_sampler(experiment, dataset, streams, crops), dataset)
    rewards = dataset.steps[keys.REWARD]
    if bool((rewards == rewards[0]).all()):
        warnings.warn(
            f"{dataset.path}: every reward is {float(rewards[0]):g}, so all that {type(experiment.agent).__name__} can "
            "learn from them is when an episode ends; label the file, or train a preset of imitation (flow-bc-*, "
            "dm1-*)",
            DataWarning,
            stacklevel=2,
        )
    return _ahead(transition_sampler(experiment, dataset, experiment.batch_size, streams, crops), dataset)


def _ahead(sampler: WindowSampler, dataset: Dataset) -> BatchSource:
    """Before they are asked for; but batches of states on a GPU, which captures single draws."""
    return DrawnAhead(sampler) if sampler.device.type == "cpu" or dataset.frames else sampler


def window_sampler(
    experiment: Experiment, dataset: Dataset, streams: Reading = None, crops: Crops = None
) -> WindowSampler:
    """Batches of windows as the experiment's agent wants them."""
    agent, sizes = experiment.agent, (experiment.agent.history, experiment.agent.chunk, experiment.batch_size)
    asked = {"previous": agent.previous, "placed": getattr(agent, "placed", False)}  # older plug-ins say no more
    return WindowSampler(dataset, *sizes, experiment.device, **asked, streams=streams, crops=crops)


def transition_sampler(
    experiment: Experiment, dataset: Dataset, batch_size: int, streams: Reading = None, crops: Crops = None
) -> TransitionSampler:
    """Batches of transitions as the experiment's agent wants them."""
    agent, sizes = experiment.agent, (experiment.agent.history, experiment.agent.chunk, batch_size)
    return TransitionSampler(dataset, *sizes, experiment.device, horizon=agent.horizon, streams=streams, crops=crops)


def require_same_data(found: str, stored: Contract, path: str) -> None:
    """Refuse a file other than the one that a run was trained on.

    Args:
        found: SHA-256 of the file at ``path``.
        stored: contract of the run.
        path: named in the error.

    """
    if UNSTATED not in (found, stored.dataset_sha256) and found != stored.dataset_sha256:
        raise DataError(
            f"the training file {path} has changed since the run was trained "
            f"(SHA-256 {found[:12]}..., was {stored.dataset_sha256[:12]}...)",
            fix="restore the file, or train a new run on the new one",
        )


def require_unchanged(data: DataConfig, stored: Contract) -> None:
    """:func:`require_same_data` before a file is read; a missing one is an error that says how to name its place."""
    path = Path(data.path)
    if not lies_elsewhere(data.path) and not path.exists():
        raise DataError(
            f"the training file {path} is not there",
            expected=f"the file with the SHA-256 {stored.dataset_sha256[:12]}...",
            fix="put it back, or say where it lies now: --data.path FILE (flowpolicy groups make: --data FILE)",
        )
    require_same_data(dataset_sha256(data), stored, data.path)
