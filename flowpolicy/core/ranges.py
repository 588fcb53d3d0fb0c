"""Ranges of numbers, written where a number is declared: ``steps: Count = 10_000``.

:func:`require_ranges` checks a configuration and everything inside it, and names the flag of what is out of range.
A number that declares no range must be finite. Whatever a command is given passes through here once: the parameters of
a command when it is called, an experiment when it is made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from flowpolicy.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; not-a-number is in no range.

    Args:
        low: smallest number.
        high: largest number.
        above: ``low`` itself is too small.
        below: ``high`` itself is too large.
        infinite: infinity, where it lies in the range, is meant.

    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False

    def __contains__(self, value: float) -> bool:
        if math.isinf(value) and not self.infinite:
            return False
        low_fits = value > self.low if self.above else value >= self.low
        return low_fits and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.above else 'at least'} {self.low:.10g}")
        if self.high < 10**9:  # larger ones guard against overflow, which nobody asks about
            parts.append(f"{'below' if self.below else 'at most'} {self.high:.10g}")
        return " and ".join(parts) or "a finite number"


FINITE = Range()

Finite = Annotated[float, FINITE]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]
"""A share that is neither nothing nor all, or a time inside a flow."""
SomeShare = Annotated[float, Range(0, 1, above=True)]
Decay = Annotated[float, Range(0, 1, below=True)]
"""Of an average: 1 would never move."""
Count = Annotated[int, Range(1, 10**9)]
Natural = Annotated[int, Range(0, 10**9)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Few = Annotated[int, Range(1, 2**14)]
"""Of what one decision takes: actions, candidates, network evaluations."""
Threads = Annotated[int, Range(1, 512)]
"""Or clients, or jobs: what the machine runs at a time."""
Workers = Annotated[int, Range(0, 512)]
"""Processes; 0 works in this one."""
Width = Annotated[int, Range(1, 2**15)]
"""Of a layer. Its matrix has the square of it."""
Depth = Annotated[int, Range(1, 256)]


def require_ranges(config: Any, prefix: str = "--") -> None:
    """Raise ConfigError unless every number of a configuration lies in its range.

    Args:
        config: a dataclass; configurations inside it are checked too.
        prefix: beginning of its flags, such as ``--agent.``.

    """
    owner: Any = type(config)
    for field, declared in declared_ranges(owner).items():
        _require(getattr(config, field), declared, prefix + field)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that checks the numbers it is called with, and the configurations among its parameters."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints, ranges = typing.get_type_hints(function, include_extras=True), declared_ranges(function)
        for name, value in (dict(zip(hints, args, strict=False)) | kwargs).items():
            unnamed = any(getattr(item, "name", None) == "" for item in getattr(hints[name], "__metadata__", ()))
            if unnamed:  # its fields are flags of the command itself
                require_ranges(value)
            else:
                _require(value, ranges[name], "--" + name)
        return function(*args, **kwargs)

    return call


@functools.cache
def declared_ranges(owner: Any) -> Mapping[str, Range | None]:
    """Fields of a dataclass, or parameters of a function, and their ranges; None where none is declared."""
    hints = typing.get_type_hints(owner, include_extras=True)
    names = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else list(hints)
    return {name: next(_ranges(hints[name]), None) for name in names}


def _ranges(hint: Any) -> Iterator[Range]:
    """The ranges inside a type hint, however deep: ``tuple[Count, ...] | None``."""
    yield from (item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Range))
    inner = (hint.__origin__,) if hasattr(hint, "__metadata__") else typing.get_args(hint)
    for part in inner:
        if not isinstance(part, str):
            yield from _ranges(part)


def _require(value: Any, declared: Range | None, flag: str) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        require_ranges(value, flag + ".")
    elif isinstance(value, (tuple, list)):
        for item in value:
            _require(item, declared, flag)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value not in (declared or FINITE):
        shown, range_ = flag.replace("_", "-").replace("--agent.flow.", "--flow."), declared or FINITE
        finite = "" if math.isfinite(value) or range_.infinite else "a finite number, "
        raise ConfigError(f"{shown} is {value}", expected=finite + str(range_) if range_ != FINITE else str(FINITE))
