"""Real-time rights in a process of their own: what is granted, what is refused, and that threads inherit it."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, resource, sys, threading
from flowpolicy.real_robot.drivers.priority import claim_priority
if sys.argv[1] == "without":
    for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE, resource.RLIMIT_MEMLOCK):
        resource.setrlimit(limit, (0, 0))
    os.setresuid(65534, 65534, 65534)
refused = claim_priority()
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(threading.get_native_id())))
thread.start()
thread.join()
print(json.dumps({"refused": refused, "fifo": seen[0] == os.SCHED_FIFO}))
"""


def claimed(rights):
    done = subprocess.run([sys.executable, "-c", PROGRAM, rights], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_threads_that_start_later_inherit_what_was_granted():
    answer = claimed("with")
    if any("scheduling" in line for line in answer["refused"]):
        pytest.skip(f"this user has no right to it: {answer['refused']}")
    assert answer["fifo"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its rights up")
def test_refusals_name_the_limit_to_raise():
    answer = claimed("without")
    assert not answer["fifo"]
    assert [word for word in ("rtprio", "memlock") if word in "".join(answer["refused"])] == ["rtprio", "memlock"]
    assert "nor to a low nice value" in answer["refused"][0]
