"""``flowpolicy doctor FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.commands.console import console
from flowpolicy.core.ranges import Count


def run(argv: Sequence[str]) -> int:
    """Check a dataset file."""
    return call(doctor, argv, "doctor")


def doctor(file: Annotated[Path, tyro.conf.Positional], /, env: str = "", episodes: Count = 10) -> int:
    """Check a dataset file, read anew; exit code 1 if it should not be trained on.

    Args:
        file: RoboMimic, D4RL or Minari HDF5, OGBench npz, or a LeRobot folder.
        env: environment that the file is compared with, and in which its actions are replayed open loop where that is
            possible, e.g. lift, can, door.
        episodes: how many to replay.

    """
    from flowpolicy.data.dataset import DataConfig, load_unchecked
    from flowpolicy.data.dataset_checks import diagnose, failed
    from flowpolicy.data.dataset_report import print_findings
    from flowpolicy.data.picture_checks import check_pictures

    dataset = load_unchecked(DataConfig(path=str(file), verify=True))
    if env:
        from flowpolicy.envs import find_env

        config = find_env(env)
        findings = diagnose(dataset, config.replay, episodes, config.spec())
        findings += check_pictures(file, getattr(config, "redraw", None))
    else:
        findings = diagnose(dataset) + check_pictures(file)
    if dataset.format == "lerobot":
        from flowpolicy.data.lerobot_checks import check_folder

        findings += check_folder(dataset)
    print_findings(findings, console())
    return int(failed(findings))
