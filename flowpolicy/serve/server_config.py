"""Options of the policy server."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Annotated

from flowpolicy.core.ranges import Count, Few, NonNegative, Positive, Range, require_ranges


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How to serve."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine's own needs a token. Traffic is not encrypted: across an
    untrusted network use a tunnel."""
    port: Annotated[int, Range(0, 65535)] = 8765
    """Port; 0 takes a free one."""
    margin_ms: NonNegative = 2.0
    """Reserve before every deadline."""
    window_ms: NonNegative = 1.0
    """Longest time that a request waits for others to share its batch."""
    inline_ms: NonNegative = 2.0
    """A batch that takes less, ms, is computed between two messages; a longer one in a thread of its own, whose
    hand-over costs more than a short computation. 0 always uses the thread."""
    max_batch: Few = 8
    """Most robots computed together."""
    max_clients: Count = 64
    """Connections at a time; one request of each can wait, and a newer one takes its place."""
    message_mb: Positive = 8.0
    """Largest message, MiB; a larger one closes its connection."""
    stall_s: Positive = 2.0
    """A client that reads nothing for so long, seconds, is disconnected."""
    faults: Count = 16
    """Faulty messages in a row after which a client is disconnected."""
    watch_s: NonNegative = 2.0
    """Seconds between looks for a newer checkpoint; 0 reloads on SIGHUP only."""

    def __post_init__(self) -> None:
        require_ranges(self)

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
