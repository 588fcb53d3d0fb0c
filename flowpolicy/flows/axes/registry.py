"""Which values an axis has. A value is a frozen dataclass whose fields are its options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from flowpolicy.core.config import fits
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.ranges import require_ranges
from flowpolicy.core.references import Reference as Reference

AXES = (
    "interpolant",
    "source",
    "coupling",
    "time",
    "target",
    "loss",
    "consistency",
    "solver",
    "schedule",
    "guidance",
)
"""Names of the axes, which are the fields of :class:`flowpolicy.flows.axes.flow_spec.FlowSpec`."""


class Conflict(NamedTuple):
    """Why a combination is refused."""

    what: str
    """The two values, as flags."""
    reason: str
    """Why their combination is wrong."""
    instead: str
    """What to use."""


class Value:
    """Base of all values of all axes."""

    axis: ClassVar[str] = ""
    name: ClassVar[str] = ""
    references: ClassVar[tuple[Reference, ...]] = ()

    def __post_init__(self) -> None:
        """Options lie in the ranges that they declare; a value that relates several of them says more."""
        if not torch.compiler.is_compiling():  # what a compiled loss makes for itself comes from no user
            require_ranges(self, f"--flow.{self.axis}.")

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """What this value refuses to be combined with.

        Args:
            spec: the whole :class:`flowpolicy.flows.axes.flow_spec.FlowSpec`.
            setting: what is known beside the axes, :class:`flowpolicy.flows.axes.refusals.Setting`.

        """
        yield from ()

    @property
    def flag(self) -> str:
        """The value as it is given on the command line."""
        return f"--flow.{self.axis} {self.name}"


VALUES: dict[str, dict[str, type[Value]]] = {axis: {} for axis in AXES}
"""Axis -> name -> class."""

TAGS: dict[str, type] = {}
"""``axis/name`` -> class: the tags of configuration files. Grows when a class is registered."""

_V = TypeVar("_V", bound=type[Value])


def register(axis: str, name: str, *references: Reference) -> Callable[[_V], _V]:
    """Class decorator that puts a value on an axis.

    Args:
        axis: one of :data:`AXES`.
        name: what the command line calls it.
        references: publications that ``flowpolicy cite`` lists.

    Raises:
        ConfigError: no such axis, or the name is taken.

    """

    def add(cls: _V) -> _V:
        if axis not in VALUES:
            raise ConfigError(f"{cls.__name__} is registered on '{axis}'", expected=nearest(axis, VALUES))
        if name in VALUES[axis]:
            raise ConfigError(f"{axis} '{name}' is registered twice: {VALUES[axis][name].__name__}, {cls.__name__}")
        cls.axis, cls.name, cls.references = axis, name, references
        VALUES[axis][name] = TAGS[f"{axis}/{name}"] = cls
        return cls

    return add


def make(axis: str, name: str, **options: Any) -> Any:
    """The value ``name`` of an axis with some of its options set.

    Raises:
        ConfigError: no such value, or no such option.

    """
    if name not in VALUES[axis]:
        raise ConfigError(f"--flow.{axis} '{name}' does not exist", expected=nearest(name, VALUES[axis]))
    cls = VALUES[axis][name]
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"--flow.{axis} {name} has no option '{option}'", expected=nearest(option, known))
        if not fits(value, hints[option]):
            raise ConfigError(f"--flow.{axis}.{option} is {value!r}", expected=f"a value of type {hints[option]}")
    return cls(**options)
