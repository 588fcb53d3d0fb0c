"""``flowpolicy report RUN... --out report.html``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call, typed
from flowpolicy.core.errors import ConfigError, FlowPolicyError
from flowpolicy.core.files import require_free
from flowpolicy.core.ranges import NonNegative
from flowpolicy.core.run_places import local_run


def run(argv: Sequence[str]) -> int:
    """Write a page about runs."""
    return call(report, argv, "report")


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path = Path("report.html"),
    videos_mb: NonNegative = 64.0,
    overwrite: bool = False,
) -> None:
    """Write one HTML file about runs, which opens offline in any browser: results, videos, traces, curves, contracts.

    Args:
        runs: run folders, evaluation files, folders of trials at an arm, or the folder of a suite.
        out: file to write.
        videos_mb: megabytes of videos that the file holds at most; what is left out is told.
        overwrite: replace an existing file at --out.

    """
    require_free(out, overwrite)
    if not runs:
        raise ConfigError("report: no run is named", expected="one or more run folders, evaluation files or suites")
    write_and_tell(runs, out, videos_mb)


def end_with_report(runs: Sequence[Path], out: Path, suite: str = "") -> None:
    """The report with which another command ends: what keeps it from being written is a warning, and no error."""
    try:
        write_and_tell(runs, out, suite=suite)
    except (FlowPolicyError, OSError) as error:
        sys.stderr.write(f"warning: no report was written: {error}\n")


def write_and_tell(runs: Sequence[Path], out: Path, videos_mb: float = 64.0, suite: str = "") -> None:
    """Write the report, and print where it lies and what is not in it."""
    from flowpolicy.lab.suite_report import suites_among
    from flowpolicy.report.run_pages import write_report

    runs = [local_run(path) for path in runs]
    written = write_report(runs, out, videos_mb=videos_mb, command=typed(), suites=suites_among(runs, suite))
    for line in written.left_out:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"report {out} ({written.size / 1e6:.1f} MB), to open in a browser\n")
