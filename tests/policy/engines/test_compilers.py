"""Engines that generate code, without the type-checking import hook, which compilers cannot trace.

One process for all, and no network twice: nearly all of the time is the C++ compiler's. That each network can be traced
is shown by tests/nets/test_compile.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.policy import load_engine

from ...agents.uninstrumented import uninstrumented
from .policies import distance, make
from .test_commitment import laboratory
from .test_seeing_engines import seeing

PROGRAM = """
import sys

import torch
from flowpolicy.policy import Policy, load_engine
from tests.policy.engines.policies import distance

torch.set_num_threads(1)
for name, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    policy, engine = Policy.load(folder), load_engine(folder, name, batches=[2])
    assert distance(policy, engine, 2) < 2e-5, (folder, name)
    assert (engine.name, engine.nfe, engine.prefix) == (name, policy.contract.nfe, policy.prefix)
"""


@pytest.mark.slow
def test_compilers_compute_what_the_policy_does(contract, tmp_path):
    continuing, guided, eyes = make(contract, prefix=2), laboratory(contract, "cfg"), seeing()
    policies = {
        "compile": [continuing, guided, eyes],
        "aotinductor": [continuing, make(contract, "unet"), make(contract, "transformer"), eyes],
    }
    words = []
    for engine, those in policies.items():
        for number, policy in enumerate(those):
            policy.save(tmp_path / f"{engine}-{number}")
            words += [engine, str(tmp_path / f"{engine}-{number}")]
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), root]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def backend(monkeypatch):
    """Graphs are run by another backend than the code generator, which takes seconds for each."""
    compiler = torch.compile

    def choose(other):
        monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend=other, **options))

    with uninstrumented():
        yield choose


def test_one_process_may_compile_more_graphs_than_pytorch_keeps_of_one_function(backend, contract, tmp_path):
    backend("eager")
    policy = make(contract)
    policy.save(tmp_path)
    for batches in (range(1, 5), range(5, 11)):
        engine = load_engine(tmp_path, "compile", batches=batches)
        assert all(distance(policy, engine, batch, count=2) < 2e-5 for batch in batches)


def test_what_cannot_be_compiled_is_an_error_of_ours(backend, contract, tmp_path):
    def broken(graph, inputs):
        raise OSError("no C++ compiler")

    backend(broken)
    make(contract).save(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot compile this policy for 2 rows: .*no C"):
        load_engine(tmp_path, "compile", batches=[2])
    assert load_engine(tmp_path, among=("compile", "eager")).name == "eager"
