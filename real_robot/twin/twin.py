"""The twin seen from outside: start its server in its own environment, and talk to its control socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.drivers.driver_protocols import RobotError
from flowpolicy.real_robot.drivers.priority import TWIN

CONTROL = ("127.0.0.1", 13370)
_START_S = 60.0


class TwinLink:
    """The twin's control socket.

    Args:
        address: host and port.

    """

    def __init__(self, address: tuple[str, int] = CONTROL) -> None:
        try:
            self._socket = socket.create_connection(address, 5.0)
        except OSError as error:
            raise RobotError(
                f"no twin answers on {address[0]}:{address[1]}: {error}",
                fix="build it with `make twin`, then start it: flowpolicy robot twin",
            ) from error
        self._stream = self._socket.makefile("rw", encoding="utf-8")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request (see ``twin_server.py``); raises :class:`RobotError` if it fails."""
        self._stream.write(json.dumps(request) + "\n")
        self._stream.flush()
        reply: dict[str, Any] = json.loads(self._stream.readline() or '{"error": "the twin is gone"}')
        if "error" in reply:
            raise RobotError(f"the twin refuses {request}: {reply['error']}")
        return reply

    def cube(self) -> NDArray[np.float64]:
        """(7,) position of the cube in the base frame, m, and quaternion w x y z."""
        reply = self.ask(op="cube")
        return np.array([*reply["position"], *reply["quaternion"]])

    def positions(self) -> NDArray[np.float64]:
        """(16,) joint positions of the scene: arm, fingers, cube."""
        return np.array(self.ask(op="qpos")["positions"])

    def place(self, position: NDArray[np.float64]) -> None:
        """Put the cube on the table at (2,) m."""
        self.ask(op="place", position=[float(value) for value in position])

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


@contextlib.contextmanager
def start_twin(venv: Path, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start the twin and wait until it answers; end it with the block.

    Args:
        venv: environment with franka-sim.
        log: where its output goes; nowhere unless given.

    Raises:
        RobotError: the environment is missing, or the twin does not answer.

    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise RobotError(f"{python} does not exist", fix="make twin")
    if _answers():
        raise RobotError(f"a twin answers already on port {CONTROL[1]}", fix="use it, or end it first")
    server = Path(__file__).parent / "twin_server.py"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": ""}
    with contextlib.ExitStack() as stack:
        sink: Any = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        process = subprocess.Popen(
            [str(python), str(server)], env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(TWIN))
            _wait_until_it_answers(process, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], log: Path | None) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(errors="replace")[-1500:] if log is not None else ""
            raise RobotError(f"the twin ended with code {process.returncode}\n{tail}")
        if _answers():
            return
        time.sleep(0.1)
    raise RobotError(f"the twin did not answer within {_START_S:g} s")


def _answers() -> bool:
    try:
        TwinLink().close()
    except RobotError:
        return False
    return True
