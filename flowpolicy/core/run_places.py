"""Where a run that a user names lies on this machine: the one place that knows other names than paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.object_store import Address, find_address


def local_run(path: Path) -> Path:
    """The folder of a run or checkpoint: the path itself, or what was fetched where it names a place elsewhere.

    Raises:
        ConfigError: of no such place a run can be taken.
        CheckpointError: nothing whole is there.
        StoreError: the store cannot be reached.

    """
    address = find_address(path)
    if address is None:
        return path
    if address.scheme not in _FETCH:
        raise ConfigError(
            f"{address.url} is no place of runs", expected=", ".join(f"{known}://..." for known in _FETCH)
        )
    return _FETCH[address.scheme](address)


def _from_store(address: Address) -> Path:
    from flowpolicy.core.remote_run import pull

    return pull(address)


_FETCH: dict[str, Callable[[Address], Path]] = {"s3": _from_store, "gs": _from_store}
