"""Where a run that a user names lies on this machine: the one place that knows other names than paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.object_store import Address, find_address, place_name


def local_run(path: Path) -> Path:
    """The folder of a run or checkpoint: the path itself, or what was fetched where it names a place elsewhere.

    Raises:
        ConfigError: of no such place a run can be taken.
        CheckpointError: nothing whole is there.
        StoreError: the store or the hub cannot be reached.

    """
    if _of_hub(path):
        from flowpolicy.core.hub_run import fetch_run, hub_name

        return fetch_run(hub_name(str(path)))[0]
    address = find_address(path)
    if address is None:
        return path
    if address.scheme not in _FETCH:
        raise ConfigError(
            f"{address.url} is no place of runs",
            expected=", ".join(f"{known}://..." for known in (*_FETCH, "hf")),
        )
    return _FETCH[address.scheme](address)


def run_name(path: str | os.PathLike[str]) -> str:
    """A run as records name it: its path, its place in a store, or its commit of the hub."""
    if _of_hub(path):
        from flowpolicy.core.hub_run import fetch_run, hub_name

        return fetch_run(hub_name(os.fspath(path)))[1].url
    return place_name(path)


def lies_here(path: str | os.PathLike[str]) -> bool:
    """Whether a name is a path of this machine, and no place in a store or on the hub."""
    return not _of_hub(path) and find_address(path) is None


def _of_hub(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).startswith("hf:/")


def _from_store(address: Address) -> Path:
    from flowpolicy.core.remote_run import pull

    return pull(address)


_FETCH: dict[str, Callable[[Address], Path]] = {"s3": _from_store, "gs": _from_store}
