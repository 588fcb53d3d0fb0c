"""``flowpolicy export RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.ranges import Few, Threads


def run(argv: Sequence[str]) -> int:
    """Export a run."""
    return call(export, argv, "export")


def export(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    to: Literal["onnx", "pt2", "numpy"],
    out: Path,
    nfe: Few | None = None,
    batches: tuple[Few, ...] = (1,),
    threads: Threads = 1,
    overwrite: bool = False,
) -> None:
    """Write a policy with its contract, card and hashes, for a computer without the training code.

    Before the file appears it has reproduced random decisions of the policy.

    Args:
        run: run folder (its newest checkpoint) or checkpoint folder.
        to: 'onnx' for ONNX Runtime; 'pt2' for AOTInductor, native code for this kind of machine that needs torch and is
            run as it is; 'numpy' needs NumPy and nothing else, and is slower.
        out: new folder.
        nfe: network evaluations per chunk; the contract's number unless given.
        batches: batch sizes to write a graph for; numpy takes any other row by row.
        threads: threads that the code of pt2 is compiled for; the others choose when they load.
        overwrite: replace another export in --out.

    """
    from flowpolicy.core.checkpoint import resolve
    from flowpolicy.core.run_places import run_name
    from flowpolicy.policy import Policy
    from flowpolicy.policy import exporting as exporting

    source = f"{run_name(run)} ({resolve(run).name})"
    sizes: dict[str, Any] = {"nfe": nfe, "batches": batches, "threads": threads}
    difference = exporting.export(Policy.load(run), to, out, **sizes, source=source, overwrite=overwrite)
    sys.stdout.write(f"{out}: {to}, differs from the policy by at most {difference:.1e} of a normalised action\n")
