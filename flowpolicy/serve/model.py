"""A checkpoint that is being served: its engines, one per number of evaluations, and what they cost."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flowpolicy.core.errors import ActionError, ConfigError, ContractError, ServingError
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.inputs import followed, require_chunks
from flowpolicy.serve.protocol import ActRequest, InputForm, Instructions
from flowpolicy.serve.scheduler import LatencyTable, measure_latency

if TYPE_CHECKING:
    from flowpolicy.core.spec import Contract


class ServedEngine(Protocol):
    """Computes chunks in one number of evaluations; used by one thread at a time.

    An engine whose ``prefix`` is above 0 takes the committed actions as two more arguments of ``act``: actions
    (b, h, a) and how many of them are committed (b,).
    """

    @property
    def name(self) -> str:
        """What computes, such as 'eager'."""

    @property
    def contract(self) -> Contract:
        """What the policy takes and gives."""

    @property
    def nfe(self) -> int:
        """Network evaluations per chunk."""

    @property
    def candidates(self) -> int:
        """Noise chunks per row."""

    def noise(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """(b k, h, a) noise of the policy's law."""

    def act(self, obs: dict[str, np.ndarray], noise: np.ndarray, *committed: np.ndarray) -> np.ndarray:
        """Name -> (b, o, *shape) and noise (b k, h, a) to chunks (b, h, a), both in environment units."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Engines of one checkpoint.

    It keeps no episode. History, queue and noise are those of the robot's own session, whose requests carry what was
    seen, what is committed and what seeds the noise: rows of many robots become one batch, and any server can answer
    the next request.
    """

    engines: dict[int, ServedEngine]
    """By number of evaluations."""
    checkpoint: str
    """Name that every answer carries."""
    table: LatencyTable
    """What a batch costs."""
    instruction: str = ""
    """What is done where a request does not say, by a policy that takes instructions; the only one unless given."""

    @classmethod
    def prepare(
        cls,
        engines: Sequence[ServedEngine],
        checkpoint: str,
        batches: Sequence[int],
        clock: Callable[[], float] = time.perf_counter,
        rounds: int = 40,
        instruction: str = "",
    ) -> Model:
        """Warm up and measure.

        Raises:
            ConfigError: no engine, or several for one number of evaluations, or an instruction that the policy does
                not know.

        """
        by_nfe = {engine.nfe: engine for engine in engines}
        if not engines or len(by_nfe) != len(engines):
            raise ConfigError(f"engines for {[e.nfe for e in engines]} evaluations", expected="one for each number")
        costs = LatencyTable({(nfe, rows): 1.0 for nfe in by_nfe for rows in batches})
        untimed = cls(by_nfe, checkpoint, costs, followed(instruction, engines[0].contract.spec))
        form = untimed.form
        types = {key: np.uint8 if key in form.pictures else np.float32 for key in form.obs}
        obs: dict[str, np.ndarray] = {key: np.zeros(shape, types[key]) for key, shape in form.obs.items()}
        for key in form.told.spec.instructions if form.told else ():
            obs[key][:, 0] = 1
        zeros = [ActRequest(number, 1.0, obs, seed=0) for number in range(max(batches))]
        # With the drawing of noise and the stacking of rows: what a batch costs is all that the server does for it.
        calls = {nfe: functools.partial(_act, untimed, nfe, zeros) for nfe in by_nfe}
        return dataclasses.replace(untimed, table=measure_latency(calls, sorted(batches), clock, rounds))

    @property
    def any_engine(self) -> ServedEngine:
        """One of the engines: all share everything but the number of evaluations."""
        return next(iter(self.engines.values()))

    @functools.cached_property
    def form(self) -> InputForm:
        """What a request must look like."""
        engine = self.any_engine
        contract = engine.contract
        noise = (engine.candidates, contract.chunk, contract.spec.action.size)
        pictures = frozenset(key for key, each in contract.spec.observation.items() if each.kind == "image")
        told = Instructions(contract.spec, self.instruction) if contract.spec.instructions else None
        return InputForm(contract.histories, noise, prefix_of(engine), pictures, told)

    def act(self, nfe: int, requests: Sequence[ActRequest]) -> np.ndarray:
        """Chunks (b, h, a) of several requests; each draws its noise from its own seed and number.

        Raises:
            ServingError: code 'internal': a chunk is not finite, or not of its shape.

        """
        engine, (_, chunk, action) = self.engines[nfe], self.form.noise
        obs = {key: np.stack([request.obs[key] for request in requests]) for key in self.form.obs}
        noise = np.concatenate([noise_of(engine, request) for request in requests])
        told: tuple[np.ndarray, ...] = ()
        if prefix_of(engine):
            committed = Committed.of([request.prefix for request in requests], (chunk, action))
            told = (committed.action, committed.length)
        chunks = engine.act(obs, noise, *told)
        try:
            require_chunks(chunks, (len(requests), chunk, action))
        except ActionError as error:
            raise ServingError(
                "internal", error.what, expected=error.expected, fix="serve an earlier checkpoint"
            ) from error
        return chunks

    def require_same_contract(self, other: Model) -> None:
        """Raise ContractError unless ``other`` can take this model's place under the clients' feet."""
        mine, theirs = self.any_engine.contract, other.any_engine.contract
        lines = mine.spec.differences(theirs.spec)
        pairs = [(name, getattr(mine, name), getattr(theirs, name)) for name in ("history", "chunk", "execute")]
        pairs += [("noise and prefix", self.form, other.form)]
        lines += [f"{name}: {a!r} against {b!r}" for name, a, b in pairs if a != b]
        if lines:
            raise ContractError(
                "the new checkpoint disagrees with the one that is served:\n    " + "\n    ".join(lines),
                fix="start another server for it; this one goes on with the old checkpoint",
            )


def prefix_of(engine: Any) -> int:
    """Most committed actions that an engine takes; 0 for one that knows of none."""
    return int(getattr(engine, "prefix", 0))


def noise_of(engine: ServedEngine, request: ActRequest) -> np.ndarray:
    """The noise of a request, (k, h, a) float32: given, or drawn from (seed, id) alone by the policy's law.

    Who else is served, in which order and in which batch does not enter, so a repeated request meets the same noise.
    """
    if request.noise is not None:
        return request.noise
    return engine.noise(1, np.random.default_rng([request.seed, request.id]))


def _act(model: Model, nfe: int, requests: Sequence[ActRequest], rows: int) -> None:
    model.act(nfe, requests[:rows])
