"""Tags of the config classes of agents in ``config.json``: a decorator gives them, in this house and outside."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import TypeVar

from flowpolicy.core.errors import ConfigError
from flowpolicy.policy.actor import KINDS as POLICY_KINDS

# Not copied: a method that is registered on an axis later has its tag at once.
KINDS: ChainMap[str, type] = ChainMap({}, *POLICY_KINDS.maps)
"""Tags of all that a stored experiment can be made of; whole once :mod:`flowpolicy.train.kinds` is imported."""

_Class = TypeVar("_Class", bound=type)


def register_config(tag: str) -> Callable[[_Class], _Class]:
    """Decorator that gives a frozen dataclass, such as the config of an agent, its tag in ``config.json``.

    Args:
        tag: stays the same when the class is renamed or moved, so that old runs can be read.

    Raises:
        ConfigError: another class has the tag.

    """

    def add(cls: _Class) -> _Class:
        known = KINDS.get(tag)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"the kind '{tag}' is {known.__module__}.{known.__qualname__} already", fix="choose another tag"
            )
        KINDS[tag] = cls  # a class of the same name: its module was imported anew, as notebooks do
        return cls

    return add
