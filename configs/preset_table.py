"""Presets by name: ``flowpolicy.presets["dm1-lift"]``."""

from __future__ import annotations

from collections.abc import Iterator

from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.train.experiment import Experiment


class PresetTable:
    """The experiments that have a name. Printed, it says what each of them is."""

    def __getitem__(self, name: str) -> Experiment:
        if name not in PRESETS:
            raise ConfigError(f"unknown preset '{name}'", expected=nearest(name, PRESETS))
        return PRESETS[name][1]

    def __contains__(self, name: object) -> bool:
        return name in PRESETS

    def __iter__(self) -> Iterator[str]:
        return iter(PRESETS)

    def __len__(self) -> int:
        return len(PRESETS)

    def find(self, *words: str) -> list[str]:
        """Names whose name or description holds all ``words``, whatever their case."""
        return [
            name
            for name, (description, _) in PRESETS.items()
            if all(word.lower() in f"{name} {description}".lower() for word in words)
        ]

    def __repr__(self) -> str:
        width = max(map(len, PRESETS))
        return "\n".join(f"{name:<{width}}  {description}" for name, (description, _) in PRESETS.items())

    def _ipython_key_completions_(self) -> list[str]:
        return list(PRESETS)


presets = PresetTable()
"""All of them."""
