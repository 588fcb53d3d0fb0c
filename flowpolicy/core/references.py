"""Publications, declared by the configs of what rests on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple


class Reference(NamedTuple):
    """A publication."""

    title: str
    arxiv: str = ""
    """Number on arXiv; empty where there is none, or it is not known."""


def citations(label: str, config: Any) -> Iterator[str]:
    """Lines ``label: title link`` of a config, and of every dataclass among its fields.

    A config declares its publications as ``references``: a class attribute, or a property where they depend on its
    options. Lines of a field are labelled with its name and, where the value has one, the value's ``name``.
    """
    for reference in getattr(config, "references", ()):
        link = f" https://arxiv.org/abs/{reference.arxiv}" if reference.arxiv else ""
        yield f"{label}: {reference.title}{link}"
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from citations(f"{field.name} {getattr(value, 'name', '')}".rstrip(), value)
