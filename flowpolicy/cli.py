"""``flowpolicy``: dispatches to :mod:`flowpolicy.commands`. Imports nothing heavy, so that help is instant."""

from __future__ import annotations

import io
import os
import select
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from flowpolicy import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "data": ("data", "make TASK | info FILE: generate demonstrations, describe a file"),
    "doctor": ("doctor", "check a dataset file, and with --env replay it in the simulator"),
    "train": ("train", "train PRESET on a dataset file"),
    "groups": ("groups", "make RUN | picture RUN: scored candidates of a run, for the presets gdro-*"),
    "resume": ("resume", "continue a run that was stopped, bit for bit"),
    "online": ("online", "continue RUN with environment steps, mixing its own experience with the file"),
    "eval": ("evaluate", "success and return of a run on an evaluation plan, with intervals"),
    "compare": ("compare", "paired comparison of two evaluated runs"),
    "serve": ("serve", "serve a run to robots: deadlines, batching, reload"),
    "features": ("features", "how far what a policy sees is from collapse, per camera and of the trunk"),
    "report": ("report", "one HTML file about runs, suites or trials: results, videos, traces, curves"),
    "push": ("push", "send a run to the Hugging Face hub, with contract, card, records and videos"),
    "pull": ("pull", "fetch a run from the hub into a folder, and verify it"),
    "card": ("card", "success against network evaluations against latency, table and picture"),
    "suite": ("suite", "run | table: several arms on several tasks under one budget, with IQM and intervals"),
    "peer": ("peer", "train | eval: a public implementation on the same file, under the same plan"),
    "sweep": ("preset_sweep", "search for options of PRESET on Ray, the worse trials stopped early"),
    "export": ("export", "write a run's policy for ONNX Runtime, AOTInductor or NumPy"),
    "demo": ("demo", "demonstrations to comparison table on Lift: what 'make demo' runs"),
    "demo-image": ("demo_image", "demonstrations with pictures to films of what the policy saw: 'make demo-image'"),
    "robot": ("robot", "check | home | run | record | replay | stop: an arm, or a stand-in"),
    "lab": ("lab", "compare points on the axes of the flow laboratory on a toy"),
    "fit": ("fit", "fit a solver of few evaluations to a trained policy"),
    "distill": ("distill", "train a student of few evaluations on the flow of a trained policy"),
    "cite": ("cite", "publications that a run stands on"),
    "bench": ("bench", "update | latency | data | rows | rollout | serve | device | seams: speed as ratios in one run"),
}
"""Command -> (module of :mod:`flowpolicy.commands` with a ``run(argv)``, one line of help)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 on errors that the user can mend, with 141 when nobody reads on (``| head``)."""
    try:
        try:
            _main(list(sys.argv[1:] if argv is None else argv))
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        sys.exit(128 + 13)  # what a shell says of a program that SIGPIPE ends
    except KeyboardInterrupt as stop:
        # Whoever was interrupted knows what it kept; nothing is promised for it here.
        sys.stderr.write(f"\nstopped{': ' if str(stop) else ''}{stop}\n")
        sys.exit(128 + 2)


def _reader_left() -> bool:
    """Whether it is standard output that broke; if so it leads nowhere from now on, so that exiting is quiet.

    Asked of the pipe itself: an unbuffered stream has nothing left to flush, and fails at no second flush.
    """
    poll = select.poll()
    try:
        poll.register(sys.stdout, select.POLLOUT)
    except (OSError, ValueError):  # replaced by something without a file
        return False
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are sentences for the user; the place in our code that said them helps nobody."""
    if category.__module__.startswith("flowpolicy."):
        sys.stderr.write(f"warning: {message}\n")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _main(arguments: list[str]) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows ASCII alone gets '?' for what it cannot show
            stream.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"flowpolicy {__version__}\n")
        return
    with warnings.catch_warnings():
        warnings.showwarning = _show
        sys.exit(_dispatch(arguments[0], arguments[1:]))


def _dispatch(command: str, arguments: list[str]) -> int:
    from flowpolicy.core.errors import ConfigError, FlowPolicyError, from_system, nearest
    from flowpolicy.core.torchrun import require_alone

    try:
        if command not in COMMANDS:
            raise ConfigError(f"unknown command '{command}'", expected=nearest(command, COMMANDS))
        if command not in ("train", "resume"):
            require_alone(
                f"flowpolicy {command}", "each would do all of it", f"start it without torchrun: flowpolicy {command}"
            )
        module = import_module(f"flowpolicy.commands.{COMMANDS[command][0]}")
        return int(module.run(arguments) or 0)
    except FlowPolicyError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except Exception as error:
        refused = from_system(error)
        if refused is None:
            if not isinstance(error, BrokenPipeError):  # of a reader who left: main knows it
                error.add_note("This is a fault of flowpolicy itself: please report it together with the command.")
            raise
        sys.stderr.write(f"error: {refused}\n")
        return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: flowpolicy [-h] [--version] COMMAND ...\n\n"
        "Offline RL and robot learning with flow-matching policies.\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\n'flowpolicy COMMAND --help' explains a command; 'flowpolicy train debug' trains in seconds.\n"
    )
