"""Frozen dataclasses to JSON with kind tags, and back. No pickle, no import by name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from flowpolicy.core.errors import ConfigError, FlowPolicyError, nearest

Kinds = Mapping[str, type]
"""Tag in the JSON -> dataclass. A plain dict; a moved class does not break a checkpoint."""

TAG = "class"
"""Key of the tag: a Python keyword, so that no field can have its name."""


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a dataclass with other values; a mapping changes fields of the configuration that it names.

    Args:
        config: a dataclass.
        changes: field -> value, or field -> changes of the dataclass in that field.

    Raises:
        ConfigError: it has no such field.

    """
    fields = [field.name for field in dataclasses.fields(config)]
    values = {}
    for name, value in changes.items():
        if name not in fields:
            raise ConfigError(f"{type(config).__name__} has no option '{name}'", expected=nearest(name, fields))
        now = getattr(config, name)
        inner = isinstance(value, Mapping) and dataclasses.is_dataclass(now)
        values[name] = changed(now, value) if inner else value
    return dataclasses.replace(config, **values)


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """The changes, for :func:`changed`, that set the field at a path of names, such as ``("net", "width")``."""
    change = value
    for name in reversed(path):
        change = {name: change}
    return dict(change)


def encode(value: Any, kinds: Kinds) -> Any:
    """Turn a config into JSON values. Every dataclass becomes ``{"class": tag, field: ...}``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = next((name for name, cls in kinds.items() if cls is type(value)), None)
        if tag is None:
            raise ConfigError(f"{type(value).__name__} has no kind tag", fix="add it to the table of kinds")
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not _left_out(f, value)}
        return {TAG: tag, **{name: encode(each, kinds) for name, each in fields.items()}}
    if isinstance(value, (list, tuple)):
        return [encode(item, kinds) for item in value]
    if isinstance(value, dict):
        return {str(k): encode(v, kinds) for k, v in value.items()}
    return value


def _left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field is one of those that came later, and says nothing: files of before keep their bytes."""
    return field.metadata.get("written") == "unless default" and getattr(value, field.name) == field.default


def decode(value: Any, kinds: Kinds, where: str = "config") -> Any:
    """Inverse of :func:`encode`. Unknown kinds and unknown or missing fields are errors that name the place."""
    if isinstance(value, list):
        return tuple(decode(item, kinds, where) for item in value)
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {k: decode(v, kinds, f"{where}.{k}") for k, v in value.items()}
    tag = value[TAG]
    if not isinstance(tag, str) or tag not in kinds:
        shown = nearest(str(tag), kinds) if len(kinds) < 20 else nearest(str(tag), kinds).partition("known: ")[0]
        raise ConfigError(
            f"{where}: unknown kind '{tag}'",
            expected=shown.strip() or f"one of the {len(kinds)} kinds of this version",
            fix="install the package that registers it (entry point flowpolicy.agents), or what wrote the file",
        )
    cls = kinds[tag]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given = {k: decode(v, kinds, f"{where}.{k}") for k, v in value.items() if k != TAG}
    for name in given:
        if name not in fields:
            raise ConfigError(
                f"{where}: {tag} has no field '{name}'",
                expected=nearest(name, fields),
                fix="use the version that wrote the file, or train again",
            )
    hints = typing.get_type_hints(cls)
    for name, item in given.items():
        if not fits(item, hints[name]):
            raise ConfigError(f"{where}.{name} is {item!r}", expected=f"a value of type {hints[name]}")
    try:
        return cls(**given)
    except FlowPolicyError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        # Types are looked at one level deep, so that what a class does with its values may fail in any of these ways.
        raise ConfigError(f"{where}: {error}", fix="the file was written by another version of flowpolicy") from error


def fits(value: Any, hint: Any) -> bool:
    """Type check of decoded JSON, elements of tuples and values of dictionaries included."""
    if hint is Any:
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in inner)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    target = origin or hint
    if isinstance(target, type) and not isinstance(value, target):
        return False
    if target is tuple and inner:
        items = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
        return len(value) == len(items) and all(map(fits, value, items))
    if isinstance(value, Mapping) and inner:
        return all(fits(item, inner[1]) for item in value.values())
    return True
