import contextlib
import io
import json
import os
import subprocess
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


@pytest.fixture(scope="session")
def compiler_cache(tmp_path_factory):
    """Environment with a cache of this session: that of another must not decide whether the compiler works."""
    base = tmp_path_factory.getbasetemp()
    home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}


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
