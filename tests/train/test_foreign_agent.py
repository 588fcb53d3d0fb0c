"""An agent of another package: trained, evaluated and resumed by the command line, which imports nothing of it."""

import json
import os
import subprocess
import sys

MODULE = """
import dataclasses
from flowpolicy.agents.cloning.regression import Regression, RegressionAgent
from flowpolicy.data.dataset import DataConfig
from flowpolicy.nets.mlp import MLP
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.kinds import register_config, register_preset

class ElsewhereAgent(RegressionAgent):
    pass

@register_config("elsewhere")
@dataclasses.dataclass(frozen=True)
class Elsewhere(Regression):
    weight: float = 2.0
    def build(self, *args, **kwargs):
        return ElsewhereAgent(self, *args, **kwargs)

small = Elsewhere(net=MLP(width=16, depth=1))
register_preset("elsewhere-toy", "an agent of another package", Experiment(
    agent=small, env="toy", steps=6, batch_size=8, checkpoint_every=2, compile=False, tensorboard=False))
"""


EACH_ANEW = """
import json, os, sys
import torch  # once for all of them: that takes the longest
from flowpolicy.cli import main
for words in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        main(words)
    assert not os.waitpid(child, 0)[1], words
"""


def test_the_command_line_trains_evaluates_and_resumes_a_foreign_agent(tmp_path):
    (tmp_path / "elsewhere.py").write_text(MODULE)
    info = tmp_path / "elsewhere-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[flowpolicy.agents]\nelsewhere = elsewhere\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def flowpolicy(*commands):
        program = [sys.executable, "-c", EACH_ANEW, json.dumps([command.split() for command in commands])]
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    flowpolicy("train elsewhere-toy --agent.weight 3 --out run", "eval run --episodes 2")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert [folder.name for folder in newest][-1] == "step_00000006"
    kept = (newest[-1] / "weights.safetensors").read_bytes()
    for file in newest[-1].iterdir():
        file.unlink()
    newest[-1].rmdir()
    (tmp_path / "run" / "checkpoints" / "LATEST").write_text(newest[-2].name)
    flowpolicy("resume run")
    assert (newest[-1] / "weights.safetensors").read_bytes() == kept
