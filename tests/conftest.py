import contextlib
import gc
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from flowpolicy.cli import main
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter

torch.set_num_threads(1)
# Otherwise whatever imports PyTorch's code generator starts processes that import torch and wait for work.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def pytest_collection_finish():
    """What was imported stays: robosuite looks through all of it, a second each time, whenever an environment ends."""
    gc.freeze()


DEVICES = (
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
)
"""For what must hold on a GPU as it does here; none of it has met one yet."""


@pytest.fixture
def spec() -> Spec:
    return Spec(
        observation={"state": ObservationSpec((3,), "m"), "goal": ObservationSpec((2,), "m")},
        action=ActionSpec(2, "delta", "world", "0.1 m per unit", "none", "none", 20.0),
        env_id="test/Point",
        env_version="1",
        horizon=30,
        success="within 0.05 m of the goal",
    )


@pytest.fixture
def contract(spec: Spec) -> Contract:
    return Contract(spec=spec, history=2, chunk=4, execute=3, nfe=1, dataset_id="d", dataset_sha256="0" * 64)


def write_demonstrations(
    path: Path, *, sizes=(("state", 3), ("goal", 2)), action=2, lengths=(9, 12, 7), seed=0
) -> Path:
    """A small RoboMimic file of random but learnable episodes: the action is a linear function of the state."""
    stream = numpy_generator(seed, "demonstrations")
    mixing = stream.normal(size=(sizes[0][1], action))
    with RobomimicWriter(path, {"env_name": "Point", "type": 1, "env_kwargs": {"control_freq": 20}}) as writer:
        for length in lengths:
            obs = {name: stream.normal(size=(length, width)) for name, width in sizes}
            actions = np.tanh(obs[sizes[0][0]] @ mixing)
            dones = np.zeros(length)
            dones[-1] = 1
            writer.add(
                RecordedEpisode(actions=actions, rewards=dones.copy(), dones=dones, obs=obs, next_obs=obs),
                filters=("train",),
            )
    return path


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    return write_demonstrations(tmp_path / "demonstrations.hdf5")


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(scope="session", autouse=True)
def compiler_cache(tmp_path_factory):
    """PyTorch's for this session: that of another must not decide whether the compiler works."""
    base = tmp_path_factory.getbasetemp()
    home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home / "inductor")


@contextlib.contextmanager
def unchecked():
    """Without type checks at run time: where the same calls come a thousand times, they are a third of the time."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def repeat(function, times):
    """Results of calling a function again and again; types are checked in the first call."""
    first = [function() for _ in range(min(times, 1))]
    with unchecked():
        return first + [function() for _ in range(times - 1)]


def flowpolicy(*words, cwd: Path) -> subprocess.CompletedProcess:
    """A command in this process, because every start of torch takes seconds: exit code, output and errors."""
    words, out, err, code = [*map(str, words)], io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


class ForkedCommand:
    """A command in a process of its own that has torch already, a copy of this one: for signals and for death."""

    def __init__(self, *words, cwd, **environment):
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        arguments = [*map(str, words)], cwd, environment
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=arguments, daemon=True)
        self._process.start()

    def _run(self, words, cwd, environment):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for number in (1, 2):
            os.dup2(self._said.fileno(), number)
        sys.stdout = os.fdopen(1, "w", 1, closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, closefd=False)
        os.environ.update(environment)
        os.chdir(cwd)
        multiprocessing.current_process().daemon = False  # it may have children
        main(words)

    def poll(self):
        """Its exit code, the negative number of the signal that killed it, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def ended(self, timeout=240):
        """Its exit code and all that it said, once it has ended."""
        self._process.join(timeout)
        assert self.poll() is not None, f"no end within {timeout} s"
        self._said.seek(0)
        return self.poll(), self._said.read()
