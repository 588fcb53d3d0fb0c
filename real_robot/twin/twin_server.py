"""The twin: franka-sim 1.1.7 with table, cube, hand and fault injection, speaking the robot's protocol on loopback.

Runs in an environment of its own (``make twin``), started by ``flowpolicy robot twin``; imports nothing of flowpolicy.
Differences from franka-sim as it comes: no download, bound to 127.0.0.1 instead of all interfaces, the flange where the
robot has it (0.107 m beyond the frame that franka-sim reports), limits and communication enforced.

Control socket, one JSON object per line on 127.0.0.1:13370::

    {"op": "cube"}                                      -> {"position": [x, y, z], "quaternion": [w, x, y, z]}
    {"op": "qpos"}                                      -> {"positions": [...]} of the whole scene, for its cameras
    {"op": "place", "position": [x, y], "yaw": a}       puts the cube on the table, m and rad
    {"op": "reflex", "name": "cartesian_reflex"}        aborts the motion with one of the robot's errors
    {"op": "user_stop"}  {"op": "drop_tcp"}  {"op": "pause", "seconds": s}
"""

from __future__ import annotations

import json
import logging
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any

import franka_sim.mujoco_franka_sim as base
import numpy as np
from franka_sim.franka_protocol import MoveStatus, RobotMode
from franka_sim.franka_sim_server import FrankaSimServer
from twin_scene import FLANGE, PREFIX, build_scene, place_cube

HERE = Path(__file__).parent
CONTROL_PORT = 13370
ERRORS = {  # research_interface::robot::Error
    "joint_position_limits_violation": 0,
    "self_collision_avoidance_violation": 2,
    "joint_velocity_violation": 3,
    "joint_reflex": 6,
    "cartesian_reflex": 7,
    "communication_constraints_violation": 25,
}
PRIVATE = (
    "_apply_control",
    "_read_and_publish_state",
    "_f_t_ee",
    "_abort_with_error",
    "_motion_lock",
    "_engage_idle_hold",
    "_pending_move_response",
    "_states_packed",
)
"""Names of franka-sim without a promise that the twin relies on; its version is pinned and a test looks for them."""


def scene(enable_hand: bool = True, dt: float = 0.001, model_path: Any = None) -> tuple[Any, str]:
    """Our scene, as franka-sim's ``build_model`` is called."""
    return build_scene(dt), PREFIX


class TwinSim(base.MujocoFrankaSim):
    """franka-sim's arm in our scene, with the flange in its place."""

    def __init__(self) -> None:
        super().__init__(enable_hand=True, model_path=str(HERE / "twin_fr3.xml"))
        self.paused_until = 0.0

    def initialize_simulation(self) -> None:
        """Build our scene instead of the downloaded model."""
        original, base.build_model = base.build_model, scene
        try:
            super().initialize_simulation()
        finally:
            base.build_model = original
        self._shift(np.eye(4))

    def update_ee_transform(self, f_t_ee: Any) -> None:
        """The client's transform counts from the flange."""
        super().update_ee_transform(f_t_ee)
        self._shift(self._f_t_ee)

    def _shift(self, f_t_ee: Any) -> None:
        flange = np.eye(4)
        flange[2, 3] = FLANGE
        self._f_t_ee = flange @ f_t_ee

    def _apply_control(self) -> None:
        while time.monotonic() < self.paused_until:
            time.sleep(0.001)
        super()._apply_control()


def answer(server: Any, sim: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Do what the control socket asks."""
    op = request["op"]
    at = sim.model.nq - 7
    if op == "cube":
        return {"position": sim.data.qpos[at : at + 3].tolist(), "quaternion": sim.data.qpos[at + 3 : at + 7].tolist()}
    if op == "qpos":
        return {"positions": sim.data.qpos.tolist()}
    if op == "place":
        place_cube(sim.data, *request["position"], yaw=float(request.get("yaw", 0.0)))
    elif op == "reflex":
        server._abort_with_error(ERRORS[request["name"]], f"injected {request['name']}", 0)
    elif op == "user_stop":
        _user_stop(server)
    elif op == "pause":
        sim.paused_until = time.monotonic() + float(request["seconds"])
    elif op == "drop_tcp":
        server.client_socket.shutdown(2)
    else:
        return {"error": f"unknown op '{op}'"}
    return {"ok": True}


def _user_stop(server: Any) -> None:
    """What the wire shows when a human presses the stop."""
    state = server.robot_state.state
    with server._motion_lock:
        state["robot_mode"], state["motion_generator_mode"], state["controller_mode"] = RobotMode.kUserStopped, 0, 3
        server._engage_idle_hold("user stop")
        if server.current_motion_id and server.client_socket is not None:
            status = MoveStatus.kPreemptedDueToActivatedSafetyFunctions
            server._pending_move_response = (server.current_motion_id, status, server._states_packed)
            server.current_motion_id = 0


class _Control(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address, daemon_threads = True, True


def serve_control(server: Any, sim: Any) -> None:
    """Answer on the control socket, in threads."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                try:
                    reply = answer(server, sim, json.loads(line))
                except (KeyError, ValueError, TypeError, AttributeError) as error:
                    reply = {"error": repr(error)}
                self.wfile.write((json.dumps(reply) + "\n").encode())

    control = _Control(("127.0.0.1", CONTROL_PORT), Handler)
    threading.Thread(target=control.serve_forever, daemon=True).start()


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sim = TwinSim()
    server = FrankaSimServer(
        host="127.0.0.1",
        physics_sim=sim,
        enable_gripper=True,
        gripper_physics=True,
        enforce_comm_constraints=True,
        enforce_motion_limits=True,
    )
    serve_control(server, sim)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.start()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
