"""What every engine is: programs over fixed buffers, one per batch size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.noise import NoiseLaw
from flowpolicy.core.spec import Contract
from flowpolicy.policy.inputs import (
    require_committed,
    require_finite,
    require_numbers,
    require_observations,
    require_pixels,
)

TOLERANCE = 1e-4
"""Largest difference from the eager policy that any engine may show, in normalised action units (the range is 2).

Typical differences are 1e-7 to 1e-6: engines multiply out constants and sum in other orders. Among candidates whose
values are equal to round-off, two engines may choose different ones.
"""


class Buffers(NamedTuple):
    """What a program reads and writes."""

    obs: Float32[np.ndarray, "b o n"]
    """Observation histories, keys side by side in the contract's order, environment units."""
    noise: Float32[np.ndarray, "bk h a"]
    """Initial noise; the k candidates of a row follow each other."""
    chunk: Float32[np.ndarray, "b h a"]
    """Action chunks, environment units: what is written."""
    committed: Float32[np.ndarray, "b h a"] | None = None
    """Committed actions, environment units; only where the policy continues a prefix."""
    length: Int64[np.ndarray, " b"] | None = None
    """How many of them are committed."""
    packed: Float32[np.ndarray, " p"] | None = None
    """``obs`` and ``noise`` as one array, zeros between them, where they lie in one: looked at in one pass."""
    pictures: Mapping[str, UInt8[np.ndarray, "b o h w c"]] = MappingProxyType({})
    """Histories of pictures as they were taken, by key."""

    @property
    def named(self) -> dict[str, np.ndarray]:
        """What is read, by the name of the graph's argument and in their order; observations only where there are."""
        read = {"obs": self.obs, "noise": self.noise, "committed": self.committed, "length": self.length}
        found = {name: value for name, value in read.items() if value is not None and value.size}
        return found | {key: self.pictures[key] for key in self.pictures}

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """What is read, in the order of every graph's arguments."""
        return tuple(self.named.values())

    def reading(self, inputs: Sequence[np.ndarray]) -> Buffers:
        """The same with other arrays for what is read, in the order of :attr:`inputs`."""
        given = dict(zip(self.named, inputs, strict=True))
        pictures = {key: given.pop(key) for key in self.pictures}
        return self._replace(**given, packed=None, pictures=pictures)


@dataclasses.dataclass(frozen=True)
class Program:
    """The whole of ``act`` at one batch size."""

    buffers: Buffers
    """Inputs and output."""
    run: Callable[[], object]
    """Computes the output from the inputs."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes that a contract gives to the buffers of a program."""

    contract: Contract
    """Whose policy."""
    candidates: int = 1
    """Chunks generated per row."""
    prefix: int = 0
    """Most committed actions."""
    law: NoiseLaw = NoiseLaw()
    """Law of the noise at the start."""

    def buffers(self, batch: int) -> Buffers:
        """Zeros at this batch size; of a policy that takes instructions the first one, for there is none of zeros."""
        contract = self.contract
        chunk = (contract.chunk, contract.spec.action.size)
        seen = (batch, contract.history, self.observation)
        start = -(-math.prod(seen) // 16) * 16  # both begin at a cache line where the first does
        packed = np.zeros(start + batch * self.candidates * math.prod(chunk), np.float32)
        obs, noise = packed[: math.prod(seen)].reshape(seen), packed[start:].reshape(-1, *chunk)
        for key, view, _ in self.views(obs):
            if contract.spec.observation[key].words:
                view[..., 0] = 1
        out = np.zeros((batch, *chunk), np.float32)
        pictures = {
            key: np.zeros((batch, contract.history, *spec.shape), np.uint8)
            for key, spec in contract.spec.observation.items()
            if spec.kind == "image"
        }
        if not self.prefix:
            return Buffers(obs, noise, out, packed=packed, pictures=pictures)
        return Buffers(obs, noise, out, np.zeros_like(out), np.zeros(batch, np.int64), packed, pictures)

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the states at one time step, by key."""
        return {key: spec.shape for key, spec in self.contract.spec.observation.items() if spec.kind == "state"}

    @property
    def observation(self) -> int:
        """Numbers of one time step, all states together."""
        return sum(math.prod(shape) for shape in self.states.values())

    def views(self, obs: Float32[np.ndarray, "b o n"]) -> list[tuple[str, np.ndarray, tuple[int, ...]]]:
        """Key, its part of ``obs`` in the key's own shape (b, o, *shape), and that shape."""
        views, start = [], 0
        for key, shape in self.states.items():
            width = math.prod(shape)
            view = obs[:, :, start : start + width].reshape(*obs.shape[:2], *shape)
            assert np.shares_memory(view, obs)
            views.append((key, view, view.shape))
            start += width
        return views


def drawn(contract: Contract, rows: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Observations of a contract by chance, name -> (b, o, *shape): what a decision is tried or timed with."""
    found: dict[str, np.ndarray] = {}
    for key, shape in contract.histories.items():
        if contract.spec.observation[key].kind == "image":
            found[key] = random.integers(0, 256, (rows, *shape), np.uint8)
        elif words := contract.spec.observation[key].words:
            found[key] = np.zeros((rows, *shape), np.float32)
            found[key][..., random.integers(len(words))] = 1
        else:
            found[key] = random.standard_normal((rows, *shape), np.float32)
    return found


class Engine:
    """A policy ready to act, without torch in its interface.

    Not for two threads at once: the buffers are fixed. Load one engine per thread.

    Args:
        name: kind of engine.
        shapes: contract, number of candidates, longest prefix and law of the noise.
        nfe: network evaluations per chunk.
        programs: batch size -> program; run once each before they are handed over.
        load_s: seconds that loading and warming up took.
        measured: what 'auto' saw: engine -> median seconds per decision, or why it cannot be had.

    """

    def __init__(
        self,
        name: str,
        shapes: Shapes,
        nfe: int,
        programs: Mapping[int, Program],
        load_s: float = 0.0,
        measured: Mapping[str, float | str] | None = None,
    ) -> None:
        self.name, self.contract, self.nfe = name, shapes.contract, nfe
        self.candidates, self.prefix, self.law = shapes.candidates, shapes.prefix, shapes.law
        self.batches = tuple(sorted(programs))
        self.load_s, self.measured = load_s, dict(measured or {})
        self._histories = shapes.contract.histories
        self._chunk = (shapes.contract.chunk, shapes.contract.spec.action.size)
        self._prepared = {
            batch * self.candidates: (program, shapes.views(program.buffers.obs)) for batch, program in programs.items()
        }

    def noise(self, rows: int, rng: np.random.Generator) -> Float32[np.ndarray, "bk h a"]:
        """Noise of the policy's law for :meth:`act`: the same for every engine from the same generator state."""
        shape = (rows * self.candidates, self.contract.chunk, self.contract.spec.action.size)
        return self.law.sample_numpy(shape, rng)

    def act(
        self,
        obs: Mapping[str, Float[np.ndarray, "b o *_"]],
        noise: Float[np.ndarray, "bk h a"],
        committed: Float[np.ndarray, "b h a"] | None = None,
        length: Int64[np.ndarray, " b"] | None = None,
    ) -> Float32[np.ndarray, "b h a"]:
        """One action chunk per row, in environment units.

        Args:
            obs: name -> (b, o, *shape), oldest first, in environment units. Extra keys are ignored.
            noise: from :meth:`noise`; the k candidates of a row follow each other. Its length decides b, any number
                up to the largest prepared batch: rows between two prepared sizes cost as much as the larger one.
            committed: actions that are executed while the policy computes, in environment units, row 0 first; rows
                from ``length`` on mean nothing. The chunk begins with them, exactly. None where nothing is committed.
            length: committed rows, at most :attr:`prefix`.

        Raises:
            ConfigError: a key is missing, a shape is wrong, a number is not finite, there are more rows than prepared
                for, or more is committed than the policy was trained to continue.

        """
        given = (getattr(noise, "shape", None) or (0,))[0]
        prepared = self._prepared.get(given)
        if prepared is None:
            return self._padded(obs, noise, given, committed, length)
        program, views = prepared
        buffers = program.buffers
        if buffers.pictures or not _copied(obs, noise, views, buffers.noise):
            self._require(obs, noise, len(buffers.obs))
            for key, view, _ in views:
                view[...] = obs[key]
            for key, pixels in buffers.pictures.items():
                require_pixels(key, obs[key])
                pixels[...] = obs[key]
            buffers.noise[...] = noise
        packed = buffers.packed
        # The product of a vector with itself is a third of the time of a sum.
        if packed is None or not math.isfinite(packed.dot(packed)):
            for key, view, _ in views:
                require_finite(f"observation '{key}'", view)
            require_finite("the noise", buffers.noise)
        self._commit(buffers, committed, length)
        program.run()
        return buffers.chunk.copy()

    def _require(self, obs: Mapping[str, np.ndarray], noise: np.ndarray, rows: int) -> None:
        found = require_observations(obs, self._histories)
        if found != rows:
            raise ConfigError(f"observations for {found} rows with noise for {rows}", expected="as many")
        require_numbers("the noise", noise, (rows * self.candidates, *self._chunk))

    def _commit(self, buffers: Buffers, committed: np.ndarray | None, length: np.ndarray | None) -> None:
        if (length is None) != (committed is None):
            raise ConfigError("committed actions without their number, or the number alone", expected="both or neither")
        if length is None or committed is None:
            if buffers.length is not None:
                buffers.length[...] = 0
            return
        require_committed(committed, length, buffers.chunk.shape, self.prefix)
        if buffers.committed is not None and buffers.length is not None:
            buffers.committed[...], buffers.length[...] = committed, length

    def _padded(
        self,
        obs: Mapping[str, np.ndarray],
        noise: np.ndarray,
        given: int,
        committed: np.ndarray | None,
        length: np.ndarray | None,
    ) -> np.ndarray:
        rows, left = divmod(given, self.candidates)
        batch = next((batch for batch in self.batches if batch >= rows), 0)
        if left or not rows or not batch:
            raise ConfigError(
                f"noise for {given} chunks",
                expected=f"a multiple of {self.candidates} and at most {self.batches[-1]} rows",
                fix=f"batches={rows} when loading the engine",
            )
        self._require(obs, noise, rows)
        extra = batch - rows
        padded = {key: _repeat(obs[key], extra) for key in self._histories}
        noise = _repeat(noise, extra * self.candidates)
        if committed is None or length is None:
            return self.act(padded, noise, committed, length)[:rows]
        require_committed(committed, length, (rows, *self._chunk), self.prefix)
        return self.act(padded, noise, _repeat(committed, extra), _repeat(length, extra))[:rows]


def _copied(
    obs: Mapping[str, np.ndarray],
    noise: np.ndarray,
    views: list[tuple[str, np.ndarray, tuple[int, ...]]],
    to: np.ndarray,
) -> bool:
    """Copy what is given as it should be, arrays of real numbers of the right shapes; False where something is not.

    Every line of Python counts between two decisions: the weights have pushed the interpreter out of the caches, and
    each takes some ten times as long as when repeated.
    """
    if type(obs) is not dict or type(noise) is not np.ndarray:
        return False
    for key, view, shape in views:
        value = obs.get(key)
        if type(value) is not np.ndarray or value.shape != shape or value.dtype.kind not in "fiub":
            return False
        view[...] = value
    if noise.shape != to.shape or noise.dtype.kind not in "fiub":
        return False
    to[...] = noise
    return True


def _repeat(value: np.ndarray, extra: int) -> np.ndarray:
    """``value`` with its last row repeated."""
    return np.concatenate([value, np.repeat(value[-1:], extra, axis=0)])
