"""The deployable thing: contract, normaliser, network, solver; and the engines that run it.

Names are looked up when they are used: engines that need no torch load without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowpolicy.policy.engines import Engine as Engine
    from flowpolicy.policy.engines import load_engine as load_engine
    from flowpolicy.policy.policy import Policy as Policy
    from flowpolicy.policy.session import Session as Session

_HOMES = {
    "Engine": "engines",
    "Policy": "policy",
    "Session": "session",
    "load_engine": "engines",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
