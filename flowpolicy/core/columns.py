"""Named tensors that share their rows: the time steps of a dataset, the windows of a batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override


class Columns(dict[str, Any]):
    """Tensors (n, ...) by name; a name may stand for columns of its own, as :data:`flowpolicy.core.keys.OBS` does.

    ``columns["obs", "state"]`` is ``columns["obs"]["state"]``. Otherwise a plain dictionary; at least one is a tensor.
    """

    @override
    def __getitem__(self, name: str | tuple[str, ...]) -> Any:
        if isinstance(name, str):
            return super().__getitem__(name)
        return functools.reduce(operator.getitem, name, self)

    @override
    def __setitem__(self, name: str | tuple[str, ...], value: Any) -> None:
        if isinstance(name, str):
            super().__setitem__(name, value)
        else:
            self[name[:-1]][name[-1]] = value

    @property
    def rows(self) -> int:
        """How many there are, n."""
        return next(len(value) for value in self.values() if isinstance(value, Tensor))

    def at(self, index: Tensor | slice) -> Columns:
        """The rows ``index``."""
        return Columns({name: v.at(index) if isinstance(v, Columns) else v[index] for name, v in self.items()})

    def split(self, size: int) -> list[Columns]:
        """Parts of so many rows, one after the other; the last may be smaller."""
        parts = {name: value.split(size) for name, value in self.items()}
        return [Columns(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]

    def to(self, device: torch.device | str) -> Columns:
        """The same on a device."""
        return Columns({name: value.to(device) for name, value in self.items()})


def concatenated(*parts: Columns) -> Columns:
    """The rows of several, which have the same names, one after the other."""
    joined = {}
    for name, value in parts[0].items():
        values = [part[name] for part in parts]
        joined[name] = concatenated(*values) if isinstance(value, Columns) else torch.cat(values)
    return Columns(joined)


def plain(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries of tensors alone, as compiled functions take them."""
    return {name: plain(value) if isinstance(value, Mapping) else value for name, value in columns.items()}
