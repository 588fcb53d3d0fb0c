"""Parsing that several commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.ranges import checked


def typed() -> str:
    """The command line of this process, for records: what to type to make them again."""
    return shlex.join(["flowpolicy", *sys.argv[1:]])


def call(function: Callable[..., int | None], argv: Sequence[str], command: str) -> int:
    """Parse ``argv`` by the signature of ``function`` and call it.

    Unknown flags and numbers out of range end with exit code 2.
    """
    return int(tyro.cli(checked(function), args=list(argv), prog=f"flowpolicy {command}") or 0)


def pick(argv: Sequence[str], table: dict[str, tuple[str, Any]], command: str, noun: str) -> tuple[str, list[str]]:
    """The leading word of ``argv``, which must be a key of ``table``, and the rest."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, table))
        lines = "\n".join(f"  {name:<{width}}  {text}" for name, (text, _) in table.items())
        usage = f"usage: flowpolicy {command} {noun.upper()} [-h] [OPTIONS]\n\n{noun}s:\n{lines}\n"
        if not argv:
            raise ConfigError(f"flowpolicy {command}: no {noun} given\n{usage}")
        sys.stdout.write(usage)
        raise SystemExit(0)
    if argv[0] not in table:
        raise ConfigError(f"flowpolicy {command}: unknown {noun} '{argv[0]}'", expected=nearest(argv[0], table))
    return argv[0], list(argv[1:])
