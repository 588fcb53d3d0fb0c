"""``flowpolicy.train``: from the name of a preset, or an experiment, and data to a finished run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from flowpolicy.configs.benchmark_presets import require_file_of
from flowpolicy.configs.preset_table import find_preset, preset_of
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.data.dataset import DataConfig, Dataset, dataset_sha256
from flowpolicy.train import training
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.run import Run


def train(
    experiment: Experiment | str,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Dataset | DataConfig | str | os.PathLike[str] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Train to the end, with checkpoints on the way, and draw the learning curves. Nobody else may do so meanwhile.

    ::

        run = fp.train("dm1-lift", data="lift.hdf5", steps=5_000, out="runs/lift")

    Args:
        experiment: name of a preset (``print(fp.presets)`` lists them), or an experiment such as
            ``fp.presets["dm1-lift"].with_(data="lift.hdf5")``. An agent alone, such as 'fql', means its preset for
            ``data``, where that has the name of a published file.
        out: run folder; ``runs/PRESET-seedS``, or ``runs/AGENT-ENV-seedS`` of an experiment, unless given.
        data: training file: its path, its options, or what :func:`flowpolicy.load_dataset` made of it. A run can be
            resumed from a file alone, so that this is read again, with the options that it was loaded with; what was
            changed in memory is not seen.
        steps: gradient updates.
        seed: of weights, batches and noise.
        progress: show a bar.
        options: any other field of :class:`~flowpolicy.train.experiment.Experiment`, as
            :meth:`~flowpolicy.train.experiment.Experiment.with_` takes them: ``agent={"chunk": 8}``.

    Returns:
        The finished run.

    Raises:
        ConfigError: no such preset, the folder holds a run already, the name of the file says that it is other data
            than the preset is for, or an option makes no sense.
        ContractError: file and environment disagree.
        DataError: the file cannot be trained on, or is another one than was loaded.
        TrainingError: a loss or a weight is not finite.

    """
    preset = experiment if isinstance(experiment, str) else ""
    if isinstance(experiment, str):
        preset = preset_of(experiment, _place(data))
        experiment = find_preset(preset)[1]
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"fp.train is given a {type(experiment).__name__}",
            expected='the name of a preset, or an Experiment such as fp.presets["debug"]',
            fix="a run goes on with run.resume(), and is trained anew by fp.train(run.experiment, out=...)",
        )
    options |= {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    made = experiment.with_(**options) if options else experiment
    if data is not None:
        made = made.with_(data=_chosen(made.data, data))
    require_file_of(made, preset)
    if out is None and preset:
        out = Path("runs") / f"{preset}-seed{made.seed}"
    return training.train(made, out, progress=progress)


def _place(data: Dataset | DataConfig | str | os.PathLike[str] | None) -> str:
    """Path of the training file; empty where none is given."""
    return str(data.path) if isinstance(data, (Dataset, DataConfig)) else os.fspath(data or "")


def _chosen(preset: DataConfig, data: Dataset | DataConfig | str | os.PathLike[str]) -> DataConfig:
    """The options of a preset with the file, and with what else was said when it was loaded."""
    if isinstance(data, DataConfig):
        return data
    if not isinstance(data, Dataset):
        return dataclasses.replace(preset, path=os.fspath(data))
    usual = DataConfig()
    names = [field.name for field in dataclasses.fields(DataConfig)]
    said = {name: value for name in names if (value := getattr(data.config, name)) != getattr(usual, name)}
    config = dataclasses.replace(preset, **{**said, "path": data.config.path or str(data.path)})
    if dataset_sha256(config) != data.sha256:
        raise DataError(f"{data.path} has changed since it was loaded", fix="load it again: fp.load_dataset(...)")
    return config
