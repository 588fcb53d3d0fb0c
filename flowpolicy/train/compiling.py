"""Whether a run compiles its updates: the rule of ``--compile auto``, and with which operators the others compute."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, TypeVar

from flowpolicy.core import ranks
from flowpolicy.nets.layers import whole_operators

if TYPE_CHECKING:
    from flowpolicy.train.experiment import Experiment

    Kind = TypeVar("Kind", bound=Experiment)

Compile = Literal["auto", "on", "off", "parts"]
USUALLY = 10_000
"""``compile_from`` of an agent that does not say."""


def decided(experiment: Kind) -> Kind:
    """The experiment with 'on' or 'off' in the place of 'auto'.

    On a CPU, compiling pays from ``compile_from`` planned updates of the agent on: the processor seconds of a cold
    compilation over those that an update saves, as ``flowpolicy bench update PRESET`` measures them. One number for an
    agent, amid what networks of 512 and of 256 gave (DM1 4,900 to 6,400 and some 10,000; FQL 1,600 and, with batches
    of 64, 8,100). It needs a C++ compiler. On a CUDA device 'auto' compiles.
    """
    if experiment.compile != "auto":
        return experiment
    return dataclasses.replace(experiment, compile="on" if not _reason_against(experiment) else "off")


def told(experiment: Experiment) -> str:
    """What :func:`decided` does with an experiment, in a line, and what would change it."""
    if experiment.compile != "auto":
        return f"compile: {experiment.compile}, as asked"
    if reason := _reason_against(experiment):
        return f"compile: off, because {reason}" + ("" if ranks.current() else "; --compile on does it nevertheless")
    where = "on a CUDA device" if _on_gpu(experiment) else f"{experiment.steps:,} updates are planned"
    return f"compile: on, because {where}: the first update takes up to minutes; --compile off does without"


def operators(choice: Compile) -> AbstractContextManager[None]:
    """What updates run in: torch's own operators where nothing is compiled that would fuse their parts."""
    return whole_operators() if choice == "off" else contextlib.nullcontext()


def _reason_against(experiment: Experiment) -> str:
    if ranks.current():
        return "several processes share it, whose messages no graph holds"
    if _on_gpu(experiment):
        return ""
    name, pays = type(experiment.agent).__name__, getattr(experiment.agent, "compile_from", USUALLY)
    if pays is None:
        return f"it never pays for {name}"
    if experiment.steps < pays:
        return f"it pays for {name} from {pays:,} updates on, and {experiment.steps:,} are planned"
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler"
    return ""


def _on_gpu(experiment: Experiment) -> bool:
    return experiment.device.startswith("cuda")
