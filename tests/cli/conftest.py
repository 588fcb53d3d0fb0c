import dataclasses

import numpy as np
import pytest

from flowpolicy.cli import main

FEW = "--batch-size 8 --no-compile --no-tensorboard --agent.net.width 8"
"""Of a training that takes a moment."""
GROUPS = "--source returns --states 8 --candidates 4"
"""Of a group file that takes a moment."""


def run(words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return stopped.value.code


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data file, runs of it and what belongs to them."""
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.core.spec import Contract
    from flowpolicy.data.normalize import Normalizer
    from flowpolicy.envs import find_env
    from flowpolicy.nets.mlp import MLP

    home = tmp_path_factory.mktemp("good")
    few = f"--data.path {home}/data.hdf5 --steps 2 {FEW}"
    for words in (
        f"data make toy --episodes 30 --workers 1 --out {home}/data.hdf5",
        f"train debug {few} --out {home}/run",
        f"train fql-toy {few} --agent.critic.width 8 --out {home}/q",
        f"eval {home}/run --episodes 1",
        f"groups make {home}/run {GROUPS} --out {home}/groups.hdf5",
    ):
        assert run(words.split()) == 0
    (home / "folder").mkdir()
    for file in ("agents/fql.py", "utils/datasets.py"):
        (home / "peer" / file).parent.mkdir(parents=True)
        (home / "peer" / file).write_text("")
    np.savez(home / "cube.npz", observations=np.zeros((4, 3)))
    config, spec = PRESETS["dm1-franka-reach"][1].agent, find_env("franka-reach").spec()
    config = dataclasses.replace(config, net=MLP(width=8, depth=1))
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    sizes = {name: each.shape[0] for name, each in spec.observation.items()}
    agent = config.build(contract, Normalizer(sizes, spec.action.size), steps=1, seed=0, compile=False)
    agent.policy().save(home / "franka")
    return home
