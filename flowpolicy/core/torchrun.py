"""What torchrun says to each process that it starts. Knows no torch, so that every command may ask."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flowpolicy.core.errors import ConfigError


@dataclass(frozen=True)
class RankPlace:
    """One of several processes that train together."""

    rank: int
    """Its number, from 0; 0 writes and speaks."""
    count: int
    """How many there are, on all machines."""
    local: int
    """Its number on its own machine: the number of its GPU."""


def rank_place() -> RankPlace | None:
    """Which of the processes that torchrun has started this one is; None where it is alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        return None
    try:
        rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise ConfigError(
            f"RANK, WORLD_SIZE or LOCAL_RANK in the environment is no number: {error}",
            fix="start the command with torchrun, or unset WORLD_SIZE",
        ) from error
    return RankPlace(rank, count, local)


def require_alone(what: str, why: str, fix: str) -> None:
    """Refuse what several processes cannot do together, where torchrun has started several.

    Args:
        what: the command or the option.
        why: it cannot be done together.
        fix: what to do instead.

    """
    if place := rank_place():
        raise ConfigError(f"{what} in {place.count} processes of torchrun: {why}", fix=fix)
