import subprocess
import sys

import pytest

from flowpolicy.core.memory import keep_freed_memory

PROGRAM = """
import resource, sys
import numpy as np
from flowpolicy.core.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(3):
        np.ones(8 << 20)  # 64 MiB, which glibc otherwise always returns to the kernel
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_blocks_that_are_allocated_again_cost_no_page_faults():
    def faults(word):
        done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 100 * faults("keep") < faults("return")


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
