"""A policy on another host: asks ``flowpolicy serve`` for chunks. Imports no torch.

Nothing here makes the robot wait: a chunk that is late or a server that is gone means no chunk, and the bridge holds by
its own rules. A lost connection is built again in the background.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from flowpolicy.core.errors import ContractError, ServingError
from flowpolicy.core.spec import Contract, read_contract
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.previous import Previous
from flowpolicy.real_robot.bridge.watchdogs import WatchdogLimits
from flowpolicy.serve.client import LateError, PolicyClient

_TIMEOUT_S = 0.15
"""On top of the budget: together shorter than the silence that the bridge takes for death."""
_PAUSE_S = 0.5
"""Between two attempts to connect anew."""


def served_contract(url: str, token: str) -> Contract:
    """What the policy of a server was trained for.

    Raises:
        ServingError: nobody answers, or the token is refused.

    """
    with PolicyClient(url, token) as client:
        return read_contract(client.contract, url)


class RemotePolicy:
    """Decides on a server (:class:`flowpolicy.policy.session.ChunkSource`).

    Args:
        url: such as 'ws://10.0.0.2:8765'.
        token: what the server wants to see, if it wants one.
        seed: of its noise.
        note: told what goes wrong.

    Raises:
        ServingError: nobody answers, or the token is refused.

    """

    continues = False
    evaluations = 0

    def __init__(self, url: str, token: str, seed: int, note: Callable[[str], None] = lambda text: None) -> None:
        self._url, self._token, self._seed, self._note = url, token, seed, note
        self._client: PolicyClient | None = PolicyClient(url, token, seed=seed, timeout_s=5.0)
        self._client.timeout_s = _TIMEOUT_S
        self._contract, self._prefix = read_contract(self._client.contract, url), self._client.prefix
        # An older observation than this is rejected by the bridge.
        self._budget_ms = 1e3 * (WatchdogLimits().observation_age - 0.05)
        self._connecting: threading.Thread | None = None
        self._failed: ContractError | None = None

    @property
    def contract(self) -> Contract:
        """What it was trained for."""
        return self._contract

    @property
    def prefix(self) -> int:
        """Most committed actions that it was trained to continue."""
        return self._prefix

    def stream(self, seed: int) -> None:
        """Noise depends on the client's seed and the number of the request: an episode begins where one ended."""

    def chunk(
        self,
        obs: Mapping[str, NDArray[Any]],
        stream: None,
        committed: Committed | None = None,
        previous: Previous | None = None,
    ) -> NDArray[Any] | None:
        """(h, a) actions that begin with the committed ones; None where none came in time.

        Raises:
            ServingError: the server refuses what it is asked.
            ContractError: the server came back with another policy.

        """
        if self._failed is not None:
            raise self._failed
        if self._client is None:
            self._reconnect()
            return None
        try:
            prefix = None if committed is None else committed.action[0, : committed.length[0]]
            return self._client.act(obs, self._budget_ms, prefix=prefix).chunk
        except LateError as late:
            self._note(late.what)
        except ServingError as error:
            if error.code not in ("lost", "overloaded", "nan"):
                raise
            self._note(error.what)
            if error.code == "lost":
                self._client.close()
                self._client = None
        return None

    def _reconnect(self) -> None:
        if self._connecting is None or not self._connecting.is_alive():
            self._connecting = threading.Thread(target=self._connect, daemon=True)
            self._connecting.start()

    def _connect(self) -> None:
        try:
            client = PolicyClient(self._url, self._token, seed=self._seed, timeout_s=2.0)
        except ServingError as error:
            self._note(error.what)
            time.sleep(_PAUSE_S)
            return
        if read_contract(client.contract, self._url) != self._contract:
            client.close()
            self._failed = ContractError(
                f"{self._url} came back with another policy", fix="end the session, check the policy, start again"
            )
            return
        client.timeout_s = _TIMEOUT_S
        self._client = client
        self._note("connected again")
