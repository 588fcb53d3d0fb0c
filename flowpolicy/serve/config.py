"""Options of the policy server."""

from __future__ import annotations

import dataclasses
import ipaddress

from flowpolicy.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How to serve."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine's own needs a token. Traffic is not encrypted: across an
    untrusted network use a tunnel."""
    port: int = 8765
    """Port; 0 takes a free one."""
    margin_ms: float = 2.0
    """Reserve before every deadline."""
    window_ms: float = 1.0
    """Longest time that a request waits for others to share its batch."""
    inline_ms: float = 2.0
    """A batch that takes less, ms, is computed between two messages; a longer one in a thread of its own, whose
    hand-over costs more than a short computation. 0 always uses the thread."""
    max_batch: int = 8
    """Most robots computed together."""
    similarity: float = 0.0
    """A robot whose normalised observation is within half of this distance of the one that its last chunk was
    computed for is given that chunk again, at once; 0 computes every one. 'card RUN --reuse' shows what it costs."""
    max_skips: int = 5
    """Chunks in a row that a robot may be given again."""
    max_clients: int = 64
    """Connections at a time."""
    max_waiting: int = 256
    """Requests that wait at a time, over all clients."""
    max_in_flight: int = 8
    """Unanswered requests of one client."""
    message_mb: float = 8.0
    """Largest message, MiB; a larger one closes its connection."""
    stall_s: float = 2.0
    """A client that reads nothing for so long, seconds, is disconnected."""
    faults: int = 16
    """Faulty messages in a row after which a client is disconnected."""
    watch_s: float = 2.0
    """Seconds between looks for a newer checkpoint; 0 reloads on SIGHUP only."""

    def __post_init__(self) -> None:
        positive = ("max_batch", "max_clients", "max_waiting", "max_in_flight", "message_mb", "stall_s", "faults")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}", expected="above 0")
        for name in ("margin_ms", "window_ms", "inline_ms", "similarity", "max_skips", "watch_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}", expected="0 or more")

    @property
    def limit(self) -> int:
        """Largest message, bytes."""
        return int(self.message_mb * 2**20)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
