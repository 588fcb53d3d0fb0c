"""Real-time rights of the bridge: asked for before any thread exists, so that the driver's threads inherit them."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

BRIDGE = 20
"""Below the interrupt threads of a real-time kernel (50), above everything that is not real-time."""
TWIN = 60
"""A busy client starves the simulator, which then calls commands lost that were not: it goes first."""
WIRE = 50
"""What stands for the cable between them."""
_NICE, _BEHIND = -15, 5
_LOCK_CURRENT_AND_FUTURE = 3
_REAL_TIME_KERNEL = Path("/sys/kernel/realtime")


def claim_priority(fifo: int = BRIDGE) -> list[str]:
    """Run this process ahead of others: FIFO scheduling or else a nice value, memory locked, no collector pauses.

    A thread inherits the scheduling of the thread that starts it, and priorities on Linux belong to threads: called
    before the driver is created, this holds for its 1 kHz loop too.

    Args:
        fifo: real-time priority, 1 to 99.

    Returns:
        What was refused, one line each; empty when all was granted.

    """
    refused = []
    gc.freeze()
    gc.disable()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(fifo))
    except (OSError, AttributeError):  # not permitted, or not Linux
        granted = "a low nice value instead"
        try:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        except PermissionError:
            granted = "nor to a low nice value"
        refused.append(f"no right to real-time scheduling, {granted}: ticks may be late (rtprio in docs/franka.md)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_LOCK_CURRENT_AND_FUTURE) != 0:
        refused.append(f"memory cannot be locked: {os.strerror(ctypes.get_errno())} (memlock in docs/franka.md)")
    return refused


def step_back() -> None:
    """Run this process behind the bridge, on whatever processor: for those that handle pictures."""
    os.nice(_BEHIND)


def real_time_kernel() -> bool:
    """Whether the kernel is a PREEMPT_RT one."""
    return _REAL_TIME_KERNEL.exists() and _REAL_TIME_KERNEL.read_text(encoding="ascii").strip() == "1"


def runs_in_real_time() -> bool:
    """Whether kernel and rights let libfranka demand real time instead of doing its best."""
    return real_time_kernel() and os.sched_getscheduler(0) == os.SCHED_FIFO
