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
    """Check a dataset file; exit code 1 if it should not be trained on.

    Args:
        file: RoboMimic or D4RL HDF5.
        env: environment in which to replay demonstrations open loop, e.g. lift, can, door.
        episodes: how many to replay.

    """
    from flowpolicy.data.dataset import DataConfig, load_unchecked
    from flowpolicy.data.doctor import diagnose, failed
    from flowpolicy.data.report import print_findings

    replay = None
    if env:
        from flowpolicy.envs import find_env

        replay = find_env(env).replay
    findings = diagnose(load_unchecked(DataConfig(path=str(file))), replay, episodes)
    print_findings(findings, console())
    return int(failed(findings))
