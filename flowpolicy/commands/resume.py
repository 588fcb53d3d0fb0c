"""``flowpolicy resume RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.errors import ConfigError

if TYPE_CHECKING:
    from flowpolicy.train.experiment import Experiment


def run(argv: Sequence[str]) -> int:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit."""
    if any(word.partition("=")[0] == "--steps" for word in argv):
        raise ConfigError(
            "a run ends where it was planned to: the schedule of its learning rate depends on the number of updates",
            fix="train a new run with more updates: flowpolicy train PRESET --steps N --out OUT",
        )
    return call(resume, argv, "resume")


def resume(
    run: Annotated[Path, tyro.conf.Positional],
    company: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    data: Annotated[Path | None, tyro.conf.arg(name="data.path")] = None,
    device: str | None = None,
) -> None:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit.

    Args:
        run: run folder.
        company: folders of the other runs that it was trained together with (flowpolicy train --seeds). Alone it comes
            to the same but for round-off.
        data: where the training file lies now, if it was moved; its content must be the same.
        device: go on elsewhere: cpu or a CUDA device. Between kinds of device the result is another one: random numbers
            differ.

    """
    from flowpolicy.commands.train import report
    from flowpolicy.train.run import Run

    if company:
        from flowpolicy.train.together import resume_together

        for made in resume_together([run, *company], data, device=device):
            report(made)
    else:
        report(Run.load(run).resume(data, device=device))


def stored_experiment(run: Path) -> Experiment:
    """The experiment of a run, for programs of before that ask here; now it is :attr:`Run.experiment`."""
    from flowpolicy.train.run import Run

    return Run.load(run).experiment
