"""The whole update as one CUDA graph: draw, gather, losses, backward, Adam, targets, averages. Has not met a GPU yet.

At these sizes an update is a thousand small kernels, and launching them takes longer than they do. Learning rates and
averages read their numbers from a tensor, which is filled in before every update. Other Python numbers that an update
read when it was captured stay in its graph, so there is one for every combination of those that change
(:func:`numbers_of`), and updates are taken one by one until a combination has been seen a few times. State stays where
it is, in the agent and in the random streams: what is stored and resumed is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from flowpolicy.agents.base.agent import TrainedAgent
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import Metrics
from flowpolicy.data.windows import WindowSampler

WARM = 3
"""Updates of a combination that are taken one by one before it is captured: in the first ones libraries and optimisers
make what they need."""
MOST = 64
"""Combinations that are counted at a time."""


@runtime_checkable
class UpdateRecorder(Protocol):
    """Runs updates, and captures them."""

    def run(self, update: Callable[[], list[Metrics]]) -> list[Metrics]:
        """Take an update now."""

    def capture(self, update: Callable[[], list[Metrics]]) -> tuple[Callable[[], None], list[Metrics]]:
        """What takes the update again and again, and the metrics that it then writes; nothing is computed meanwhile."""


class CapturedUpdate:
    """Updates of an agent, or of several at once, each of them one launch where it can be.

    Args:
        agents: on a GPU; from their first update on, or taken up from a checkpoint.
        source: of their batches.
        update: takes one update of all of them; the metrics of each.
        generators: all that it draws with.
        recorder: captures; CUDA's unless given.

    Raises:
        ConfigError: an update of these agents or from this source cannot be captured.

    """

    def __init__(
        self,
        agents: Sequence[Any],
        source: Any,
        update: Callable[[], list[Metrics]],
        generators: Sequence[torch.Generator],
        recorder: UpdateRecorder | None = None,
    ) -> None:
        for agent in agents:
            if reason := obstacle(agent, source):
                raise ConfigError(f"the update cannot be captured: {reason}", fix="leave --capture out")
        self.agents: list[TrainedAgent] = list(agents)
        place = generators[0].device
        # Adam's kernels read float32 on a GPU; a rehearsal on the processor rounds as Python does.
        self._kind = torch.float32 if place.type == "cuda" else torch.float64
        self._numbers = torch.tensor(self._due(), dtype=self._kind, device=place)
        counts = [len(agent.optimizer.numbers()) for agent in agents]
        for agent, part in zip(agents, self._numbers.split(counts), strict=True):
            agent.optimizer.reading(part)
        self._update = update
        self._recorder = recorder or CudaRecorder(generators[0].device, list(generators))
        self._seen: dict[tuple[Any, ...], int] = {}
        self._captured: dict[tuple[Any, ...], tuple[Callable[[], None], list[Metrics]]] = {}

    def __call__(self) -> list[Metrics]:
        """One update; the metrics of each, all but the loss in memory that the next update writes to."""
        self._numbers.copy_(torch.tensor(self._due(), dtype=self._kind), non_blocking=True)
        key = tuple(number for agent in self.agents for number in numbers_of(agent))
        if key not in self._captured and self._seen.setdefault(key, 0) < WARM:
            self._seen[key] += 1
            while len(self._seen) > MOST:  # of a number that changes with every update
                del self._seen[next(iter(self._seen))]
            return self._recorder.run(self._update)
        before = [agent.optimizer.updates for agent in self.agents]
        if key not in self._captured:
            self._captured[key] = self._recorder.capture(self._update)
        replay, metrics = self._captured[key]
        replay()
        for agent, updates in zip(self.agents, before, strict=True):
            agent.optimizer.updates = updates + 1  # which no kernel counts
        return [{**own, "loss": own["loss"].clone()} for own in metrics]

    def _due(self) -> list[float]:
        """The numbers of the optimisers' next steps, one after the other."""
        return [number for agent in self.agents for number in agent.optimizer.numbers()]


def numbers_of(agent: TrainedAgent) -> tuple[Any, ...]:
    """The Python numbers that a graph of the next update of an agent would hold, and that change between updates."""
    return (*agent.switches().items(), *agent.numbers())


def obstacle(agent: Any, source: Any) -> str:
    """Why an update cannot be captured; empty where it can."""
    if not isinstance(agent, TrainedAgent) or type(agent).update is not TrainedAgent.update:
        return f"{type(agent).__name__} takes its updates in a way of its own"
    if agent.waits:
        return agent.waits
    if getattr(source, "reads", False):
        return "pictures are read from their files by the processor"
    if not isinstance(source, WindowSampler):
        return f"batches of a {type(source).__name__} are more than draws from a file"
    if source.device.type != source.place.type:
        return "the data do not fit on the GPU"
    return ""


class CudaRecorder:
    """Captures on a stream of its own.

    Args:
        device: where.
        generators: whose draws every replay goes on with.

    """

    def __init__(self, device: torch.device, generators: list[torch.Generator]) -> None:
        self.device, self.generators = device, generators
        self._stream = torch.cuda.Stream(device)

    def run(self, update: Callable[[], list[Metrics]]) -> list[Metrics]:
        """Take an update on the stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            metrics = update()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return metrics

    def capture(self, update: Callable[[], list[Metrics]]) -> tuple[Callable[[], None], list[Metrics]]:
        """Capture an update; replays run on whatever stream is current."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        torch.cuda.synchronize(self.device)
        with torch.cuda.graph(graph, stream=self._stream):
            metrics = update()
        return graph.replay, metrics
