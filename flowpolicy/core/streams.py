"""Observations as named streams: one tensor (b, o, *shape) per key, and how states lie side by side in one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.spec import ObservationSpec

Streams = dict[str, Tensor]
"""Observation histories by name, (b, o, *shape), oldest first."""

STATES = "(states)"
"""Name of the stream that holds all states side by side, (b, o, n), normalised: no key of a file is called so."""


class Crop(NamedTuple):
    """A window of every frame, as the encoder of a policy wants it."""

    height: int
    """Rows of the window."""
    width: int
    """Columns of the window."""
    pad: int = 0
    """Pixels by which the window may reach over the edge, where the outermost pixels repeat."""

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Number of places for the upper left corner, by rows and columns, in frames of this size."""
        return height - self.height + 2 * self.pad + 1, width - self.width + 2 * self.pad + 1


class Layout:
    """Where every key lies once the states are packed into one stream.

    Packing is one copy; whatever reads observations several times (encoder, critic, guidance) reads the packed stream
    as it is. Pictures are never packed.

    Args:
        observation: what there is, in order.

    """

    def __init__(self, observation: Mapping[str, ObservationSpec]) -> None:
        self.keys = tuple(observation)
        self.widths = {key: math.prod(spec.shape) for key, spec in observation.items() if spec.kind == "state"}
        self.size = sum(self.widths.values())
        """n, numbers of all states at one time."""
        self.pictures = tuple(key for key in self.keys if key not in self.widths)
        """Keys of the pictures, in order."""

    def pack(self, streams: Mapping[str, Tensor]) -> Streams:
        """States side by side under :data:`STATES`, pictures as they are, no other keys; packed streams stay.

        Pictures may be left out, where something is done with the states alone.
        """
        rest = {key: streams[key] for key in self.pictures if key in streams}
        if STATES in streams:
            return {STATES: streams[STATES], **rest}
        states = [streams[key].flatten(2) for key in self.widths]
        return {STATES: states[0] if len(states) == 1 else torch.cat(states, dim=-1), **rest} if states else rest

    def states(self, streams: Mapping[str, Tensor], like: Tensor) -> Float[Tensor, "b n"]:
        """All states of every history in one row; no numbers where there are only pictures, in rows as of ``like``."""
        packed = self.pack(streams)
        return packed[STATES].flatten(1) if STATES in packed else like.new_zeros(len(like), 0)

    def hidings(self, names: Sequence[str]) -> Float[Tensor, "k s"]:
        """Factors per key that hide the named ones: all of them, then all but each; no rows without names.

        Raises:
            ConfigError: there is no such observation.

        """
        for name in names:
            if name not in self.keys:
                raise ConfigError(f"the guidance hides the observation '{name}'", expected=nearest(name, self.keys))
        kept = ("", *names) if names else ()
        rows = [[float(key not in names or key == one) for key in self.keys] for one in kept]
        return torch.tensor(rows).reshape(-1, len(self.keys))

    def hidden(self, streams: Mapping[str, Tensor], factors: Float[Tensor, "b s"]) -> Streams:
        """Packed streams, every key of every row times its factor; a single row of factors serves all."""
        packed, each = self.pack(streams), dict(zip(self.keys, factors.split(1, dim=1), strict=True))
        for key in self.pictures:
            packed[key] = packed[key] * each[key].view(-1, *[1] * (packed[key].dim() - 1))
        if self.widths:
            columns = torch.cat([each[key].expand(-1, width) for key, width in self.widths.items()], dim=1)
            packed[STATES] = packed[STATES] * columns.unsqueeze(1)
        return packed


def repeated(value: Tensor, times: int) -> Tensor:
    """Every row ``times`` times, one after the other."""
    # Not repeat_interleave: exporters take its number of rows for unknown.
    return value.unsqueeze(1).expand(-1, times, *value.shape[1:]).flatten(0, 1)


def repeated_streams(streams: Mapping[str, Tensor], times: int) -> Streams:
    """:func:`repeated` for every stream."""
    return {key: repeated(value, times) for key, value in streams.items()}
