"""A run folder as an object: what was trained on what, how far it came, and how well it does."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowpolicy.core import checkpoint, keys
from flowpolicy.core.config import decode
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import read_json, read_object
from flowpolicy.core.hub_run import refuse_cached
from flowpolicy.core.object_store import place_name
from flowpolicy.core.remote_run import take_over
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import Contract, load_contract
from flowpolicy.data.dataset import DataConfig, Dataset, load_dataset
from flowpolicy.data.remote_data import lies_elsewhere
from flowpolicy.data.windows import WindowSampler
from flowpolicy.evaluate.records import Identity, identity, stored_records
from flowpolicy.evaluate.report import Evaluation
from flowpolicy.policy import Policy
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.train.experiment import Experiment, require_unchanged
from flowpolicy.train.kinds import KINDS


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run folder and one of its checkpoints, which every property speaks of; goes wherever a path goes.

    :meth:`load` makes it from a path; :func:`flowpolicy.train` and :meth:`resume` return one.
    """

    path: Path
    """The run folder; the checkpoint folder itself where that lies in no run."""
    checkpoint: Path
    """Checkpoint folder, verified when the run was loaded: the newest, unless another one was named."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """The run in a folder.

        Args:
            path: run folder (its newest checkpoint), checkpoint folder, or a run elsewhere: s3://BUCKET/NAME,
                hf://USER/NAME@REVISION.

        Raises:
            CheckpointError: no checkpoint is there, or a file of it is missing or altered.

        """
        folder = checkpoint.resolve(Path(path))
        return cls(checkpoint.run_of(folder), folder)

    def __fspath__(self) -> str:
        return str(self.path if self.is_newest else self.checkpoint)

    def __repr__(self) -> str:
        agent, steps = type(self.experiment.agent).__name__, self.experiment.steps
        return f"<Run {self.__fspath__()}: {agent} for {self.experiment.env}, update {self.step:,} of {steps:,}>"

    @property
    def is_newest(self) -> bool:
        """Whether no newer checkpoint of the run is there."""
        return checkpoint.newest(self.path) in ("", self.checkpoint.name)

    @property
    def steps(self) -> tuple[int, ...]:
        """Updates after which a checkpoint is there, first to last."""
        folders = sorted((self.path / checkpoint.FOLDER).glob("step_*"))
        return tuple(int(folder.name.removeprefix("step_")) for folder in folders)

    def at(self, step: int) -> Run:
        """The same run at another checkpoint.

        Raises:
            CheckpointError: there is none of ``step`` updates.

        """
        if step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise CheckpointError(f"{self.path} has no checkpoint of {step} updates", expected=f"one of {there}")
        return Run.load(self.path / checkpoint.FOLDER / f"step_{step:08d}")

    @property
    def step(self) -> int:
        """Finished updates."""
        return int(read_json(self.checkpoint / "state.json")["step"])

    @property
    def identity(self) -> Identity:
        """What tells this checkpoint from every other: its step and its hash."""
        return identity(self.checkpoint)

    @functools.cached_property
    def contract(self) -> Contract:
        """What the policy may be used for: spaces, action convention, data."""
        return load_contract(self.checkpoint / "contract.json")

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What was trained.

        Raises:
            CheckpointError: the folder holds a policy alone.

        """
        found = self._config("experiment")
        if not isinstance(found, Experiment):
            raise CheckpointError(
                f"{self.checkpoint / 'config.json'} holds no experiment",
                fix="name the folder of a run, and use the flowpolicy version that wrote it",
            )
        return found

    @functools.cached_property
    def policy_config(self) -> PolicyConfig:
        """Network and way of acting of the policy."""
        found = self._config("policy")
        if not isinstance(found, PolicyConfig):
            raise CheckpointError(
                f"{self.checkpoint / 'config.json'} holds no policy", fix="use the flowpolicy version that wrote it"
            )
        return found

    def _config(self, part: str) -> Any:
        path = self.checkpoint / "config.json"
        stored = read_object(path).get(part)
        if isinstance(stored, dict) and isinstance(stored.get("compile"), bool):  # of a run from before the choice
            stored["compile"] = "on" if stored["compile"] else "parts"
        return decode(stored, KINDS, str(path))

    def policy(self, *, averaged: bool = True, device: torch.device | str = "cpu") -> Policy:
        """The policy, as :meth:`flowpolicy.Policy.load` gives it."""
        return Policy.load(self.checkpoint, averaged=averaged, device=device)

    def data(self, path: str | os.PathLike[str] | None = None) -> DataConfig:
        """Where the training data lie and what of them is used; the file must be the one that the run was trained on.

        Args:
            path: where the file lies now, if it was moved.

        Raises:
            DataError: it is not there, or has another content.

        """
        data = self.experiment.data
        if path is not None:
            data = dataclasses.replace(data, path=place_name(path))
        elif not lies_elsewhere(data.path) and not Path(data.path).exists():
            # What was made in the folder of the run moves with it.
            own = self.path / Path(data.path).name
            data = dataclasses.replace(data, path=str(own.absolute())) if own.is_file() else data
        require_unchanged(data, self.contract)
        return data

    def dataset(self, path: str | os.PathLike[str] | None = None) -> Dataset:
        """The training data; ``path`` and errors as of :meth:`data`."""
        return load_dataset(self.data(path))

    def observations(self, samples: int, seed: int) -> dict[str, Tensor]:
        """Observation histories of the training data, drawn with replacement, name -> (samples, o, *shape)."""
        sampler = WindowSampler(self.dataset(), self.contract.history, self.contract.chunk, samples)
        return dict(sampler.draw(torch_generator(seed, "observations"))[keys.OBS].items())

    def evaluations(self) -> list[Evaluation]:
        """The stored evaluations of this checkpoint, newest first."""
        wanted = self.identity
        return [evaluation for evaluation in stored_records(self.path).values() if wanted.made(evaluation)]

    def resume(
        self, data: str | os.PathLike[str] | None = None, *, device: str | None = None, progress: bool = True
    ) -> Run:
        """Go on to the end from the newest checkpoint; the result equals that of the uninterrupted run bit for bit.

        Args:
            data: where the training file lies now, if it was moved.
            device: another one than the run was begun on; the result is then not that of the uninterrupted run.
            progress: show a bar.

        Raises:
            ConfigError: this is an older checkpoint, or one without its run.
            DataError: the training file is not there, or has another content.

        """
        from flowpolicy.train.training import go_on

        if self.path == self.checkpoint or not self.is_newest:
            raise ConfigError(
                f"{self.checkpoint} is a checkpoint, and a run goes on from its newest one",
                fix=f"flowpolicy resume {self.path}",
            )
        refuse_cached(self.path)
        place = self.experiment.device if device is None else device
        experiment = dataclasses.replace(self.experiment, data=self.data(data), device=place)
        return go_on(experiment, take_over(self.path), progress=progress)
