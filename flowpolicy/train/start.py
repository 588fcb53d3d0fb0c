"""What a run begins with: data alone, a policy that groups improve, or an agent that goes on in its environment."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import override

from flowpolicy.agents.groups.group_file import Groups, GroupSampler
from flowpolicy.core import checkpoint, ranks
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_tensors
from flowpolicy.core.protocols import Agent, BatchSource, VecEnv
from flowpolicy.core.spec import Contract, Spec
from flowpolicy.data.dataset import DataConfig, Dataset, load_dataset
from flowpolicy.data.normalize import Normalizer
from flowpolicy.data.remote_data import lies_elsewhere
from flowpolicy.data.replay import MixedReplay
from flowpolicy.data.windows import require_whole_chunks
from flowpolicy.envs import RECORDED, find_env
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.train.experiment import (
    Crops,
    Experiment,
    Reading,
    make_contract,
    make_sampler,
    require_same_data,
    transition_sampler,
    window_sampler,
)
from flowpolicy.train.online_source import OnlineSource
from flowpolicy.train.post_training import load_base, require_same_start, take_over


@dataclasses.dataclass(frozen=True)
class Start:
    """Training data, and an agent that nothing has trained yet."""

    experiment: Experiment
    """What is trained, with all that another run decides for it."""
    dataset: Dataset
    contract: Contract
    """Of the policy to be; the stored one where a run is resumed."""
    alone: ClassVar[str] = ""
    """Why such runs cannot be trained in company; empty where they can."""
    whole: ClassVar[str] = ""
    """Why processes cannot share the updates of such a run; empty where they can."""

    def agent(self) -> Agent:
        """The agent before its first update."""
        return self._build(Normalizer.fit(self.dataset, self.experiment.normalizer))

    def source(self, agent: Agent) -> BatchSource:
        """Where its batches come from. The agent has its final scaling by then: batches may hold what it makes."""
        return make_sampler(self.experiment, self.dataset, _reading(agent), _crops(agent))

    def again(self, experiment: Experiment, stored: Contract | None) -> Start:
        """The same data for another experiment, such as one with another seed; ``stored`` where it is resumed."""
        mine = self.experiment
        if self.alone:
            raise ConfigError(self.alone, fix="train them one after the other")
        data = dataclasses.replace(experiment.data, path=_absolute(experiment.data.path or mine.data.path))
        same = dataclasses.replace(experiment, seed=mine.seed, agent=mine.agent, data=data)
        if same != mine:
            raise ConfigError(
                "runs in company differ in more than the seed and the numbers of the agent",
                fix="train them one after the other",
            )
        if stored:
            require_same_data(self.dataset.sha256, stored, str(self.dataset.path))
        experiment = dataclasses.replace(experiment, data=data)
        return dataclasses.replace(self, experiment=experiment, contract=stored or self.contract)

    def hand_over(self, agent: Agent) -> None:
        """Give the agent of a new run what somebody else has learned."""
        for line in getattr(agent, "begin", list)():
            warnings.warn(line, stacklevel=2)

    def _build(self, normalizer: Normalizer, **more: Any) -> Agent:
        experiment = self.experiment
        return experiment.agent.build(
            self.contract,
            normalizer,
            steps=experiment.steps,
            seed=experiment.seed,
            compile=experiment.compile == "on",
            device=experiment.device,
            **more,
        )


@dataclasses.dataclass(frozen=True)
class PostTrainingStart(Start):
    """An agent that begins as a trained policy and learns from scored candidates of it."""

    base: Policy
    groups: Groups
    alone: ClassVar[str] = "post-training on groups cannot be done in company: it assesses its policy between updates"
    whole: ClassVar[str] = "post-training draws groups as a whole, and assesses its policy between updates"

    @override
    def agent(self) -> Agent:
        return self._build(self.base.normalizer, base=self.base, groups=self.groups)

    @override
    def source(self, agent: Agent) -> BatchSource:
        return GroupSampler(window_sampler(self.experiment, self.dataset, _reading(agent)), self.groups)


@dataclasses.dataclass(frozen=True)
class OnlineStart(Start):
    """An agent that was trained on the data and goes on with environment steps between the updates."""

    run: Path
    """Folder of the new run, which keeps the episodes."""
    slot: VecEnv
    """One environment to step in."""
    alone: ClassVar[str] = "online training cannot be done in company: every run steps in an environment of its own"
    whole: ClassVar[str] = "online training steps in one environment between updates, and batches hold its episodes"

    @override
    def source(self, agent: Agent) -> BatchSource:
        experiment, online = self.experiment, self.experiment.online
        if seen := self.contract.spec.images:
            raise ConfigError(
                f"online training keeps no pictures, and this policy sees {', '.join(seen)}",
                fix="go on from a run on states alone, which --data.obs-keys KEY ... gives",
            )
        replay = MixedReplay(
            self.dataset,
            functools.partial(transition_sampler, experiment, streams=_reading(agent)),
            experiment.batch_size,
            online.ratio,
            self.run / "replay",
        )
        log = self.run / "episodes.csv"
        return OnlineSource(online, agent, self.contract, self.slot, replay, experiment.seed, log)

    @override
    def hand_over(self, agent: Agent) -> None:
        agent.load_state_dict(read_weights(checkpoint.resolve(Path(self.experiment.online.base))))


def find_start(
    experiment: Experiment, run: Path, env: Spec | None, stored: Contract | None, slot: VecEnv | None
) -> Start:
    """What an experiment begins with, once everything that could be wrong with it was looked at.

    Args:
        experiment: what is trained.
        run: its folder.
        env: spec of the environment; that of the experiment's unless given.
        stored: contract of the run where it is resumed: data, base and groups must be the same still.
        slot: one environment to step in, where ``experiment.online`` asks for steps.

    """
    experiment = take_over(experiment)
    # An unknown one is told before a file is read.
    config = find_env(experiment.env) if env is None and experiment.env != RECORDED else None
    experiment = dataclasses.replace(experiment, data=_data(experiment, run))
    dataset = load_dataset(experiment.data)
    if env is None and isinstance(config, ArmTaskConfig):
        env = config.speaking(dataset.spec.action)
    elif env is None:
        env = dataset.spec if config is None else config.spec()
    contract = make_contract(experiment, dataset, env)
    base = groups = None
    if experiment.agent.needs == "groups":
        contract, base, groups = load_base(experiment, contract)
    if stored:
        require_same_data(dataset.sha256, stored, str(dataset.path))
        require_same_start(contract, stored)
        contract = stored
    if experiment.data.short_episodes == "refuse":
        require_whole_chunks(dataset, experiment.agent.chunk)
    if base is not None and groups is not None:
        return PostTrainingStart(experiment, dataset, contract, base, groups)
    if not experiment.online.base:
        return Start(experiment, dataset, contract)
    if slot is None:
        raise ConfigError("an experiment with environment steps has no environment", expected="slot=env.make(1)")
    return OnlineStart(experiment, dataset, contract, run, slot)


def _data(experiment: Experiment, run: Path) -> DataConfig:
    """Where the data lie; for the toy, demonstrations are made on the spot."""
    path = experiment.data.path
    if not path:
        if experiment.env != "toy":
            raise ConfigError(
                "no training file is given",
                expected="--data.path FILE",
                fix=f"make one with: flowpolicy data make {experiment.env} --episodes 200 --out FILE",
            )
        path = str(run / "toy.hdf5")
        if ranks.leads() and not checkpoint.newest(run):  # what an earlier attempt left there may be of another seed
            from flowpolicy.envs.demonstrators import make_demonstrations

            make_demonstrations("toy", Path(path), episodes=50, seed=experiment.seed, quality="expert", workers=1)
    return dataclasses.replace(experiment.data, path=_absolute(path))


def _absolute(path: str) -> str:
    """A path by which the run can be resumed from another working directory; an address as it is."""
    return path if lies_elsewhere(path) else str(Path(path).absolute())


def read_weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What an agent's ``load_state_dict`` takes, from a checkpoint folder."""
    return {path.stem: read_tensors(path) for path in folder.glob("*.safetensors")}


def _crops(agent: Agent) -> Crops:
    """Windows of pictures that the agent trains on; whole pictures for an agent of another package."""
    found = getattr(agent, "crops", None)
    return found if isinstance(found, dict) else None


def _reading(agent: Agent) -> Reading:
    """How the agent reads observations; None where an agent of another package takes them as they are in the file."""
    found = getattr(agent, "streams", None)
    return found if callable(found) else None
