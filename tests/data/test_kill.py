"""``kill -9`` while writing: what stood there before stays, and nothing half-written gets the final name."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter
with RobomimicWriter(sys.argv[1], {}) as writer:
    while True:
        x = np.zeros((50, 3))
        writer.add(RecordedEpisode(x, x[:, 0], x[:, 0], {"state": x}, {"state": x}))
        print("added", flush=True)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_kill_while_writing(tmp_path, existing):
    path = tmp_path / "demos.hdf5"
    if existing:
        path.write_bytes(b"before")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == b"added\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.exists() == existing
    if existing:
        assert path.read_bytes() == b"before"
