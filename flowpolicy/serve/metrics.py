"""What a server counts, as Prometheus text."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

import numpy as np

_KEPT = 4096


class ServerMetrics:
    """Counters since the start and the latest latencies. One thread writes: the server's event loop."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, deque[float]] = {}

    def count(self, name: str, label: str = "", by: int = 1) -> None:
        """Add to a counter; ``label`` is written as 'key=value'."""
        self.counts[name, label] += by

    def time(self, name: str, seconds: float) -> None:
        """Keep one duration."""
        self._seconds.setdefault(name, deque(maxlen=_KEPT)).append(seconds)

    def total(self, name: str) -> int:
        """A counter over all its labels."""
        return sum(value for (found, _), value in self.counts.items() if found == name)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it in the text format of Prometheus."""
        lines = []
        for (name, label), value in sorted(self.counts.items()):
            key, _, text = label.partition("=")
            labels = f'{{{key}="{text}"}}' if label else ""
            lines.append(f"flowpolicy_{name}_total{labels} {value}")
        for name, seconds in sorted(self._seconds.items()):
            for quantile, value in zip((0.5, 0.99, 0.999), np.quantile(seconds, (0.5, 0.99, 0.999)), strict=True):
                lines.append(f'flowpolicy_{name}_seconds{{quantile="{quantile}"}} {value:.6f}')
        lines += [f"flowpolicy_{name} {value:g}" for name, value in sorted(gauges.items())]
        return "\n".join(lines) + "\n"
