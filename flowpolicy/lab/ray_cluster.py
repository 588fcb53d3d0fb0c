"""Ray: connecting to it quietly, and what is said where that fails."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from flowpolicy import __version__
from flowpolicy.core.errors import ConfigError, FlowPolicyError, MissingExtraError


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Yield the module ``ray``, connected; nothing is reported to anybody, and no dashboard is started.

    Args:
        address: ``ray://HOST:PORT`` of a cluster's client server. Empty: the cluster that this machine belongs to, or
            that RAY_ADDRESS names; where there is none, one of its own on this machine, which ends with the block and
            listens on localhost alone.

    Raises:
        MissingExtraError: Ray is not installed.
        FlowPolicyError: no cluster answers there, or one of another version.

    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not address and "RAY_ADDRESS" not in os.environ:
        # Read when Ray is imported: a cluster of one machine listens on its loopback address. Ray names the variable
        # after the systems where that is usual; a cluster that runs already has its own address all the same.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        for name in ("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "RAY_worker_register_timeout_seconds"):
            os.environ.setdefault(name, "300")  # the machine may be busy
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address:
            ray.init(address, **quiet)
        else:
            _init_near(ray, quiet)
    except Exception as error:  # ConnectionError, RuntimeError of other versions, gRPC's own
        raise FlowPolicyError(
            f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS') or 'this machine'}: "
            f"{str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__}",
            expected=f"a cluster of Ray {ray.__version__} and Python {sys.version.split()[0]}, as here",
            fix="check `ray status` on its head node, and name its client port: --on ray://HOST:10001",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _init_near(ray: Any, quiet: dict[str, Any]) -> None:
    try:
        ray.init("auto", **quiet)
    except ConnectionError:
        if "RAY_ADDRESS" in os.environ:
            raise
        _start(ray, quiet)


def _start(ray: Any, quiet: dict[str, Any]) -> None:
    """Start a cluster on this machine alone. Ray gives its processes 30 s, which is short on a busy one."""
    for tries_left in (2, 1, 0):
        try:
            ray.init(include_dashboard=False, **quiet)
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or not tries_left:
                raise
        else:
            return


def require_address(on: str) -> str:
    """The address in ``ray`` or ``ray://HOST:PORT``; empty in the former."""
    if on == "ray":
        return ""
    host, _, port = on.removeprefix("ray://").rpartition(":")
    if not on.startswith("ray://") or not host or not port.isdigit():
        raise ConfigError(f"--on {on}", expected="local, ray, ray://HOST:PORT (usually port 10001) or slurm")
    return on


def versions() -> dict[str, str]:
    """What decides the bits of a result, and must be the same on every node."""
    torch = importlib.metadata.version("torch")  # importing it takes a worker, which only starts processes, seconds
    return {"flowpolicy": __version__, "torch": torch, "Python": sys.version.split()[0]}
