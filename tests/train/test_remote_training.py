"""A run in an object store: stopped on one machine, gone on with on another, the same bits."""

import dataclasses

import pytest
import torch

from flowpolicy import evaluate
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import checkpoint, files
from flowpolicy.core.remote_run import address_of
from flowpolicy.data.dataset import DataConfig
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.nets.mlp import MLP
from flowpolicy.train import loop, training
from flowpolicy.train.run import Run
from tests.object_store_server import bucket, store, wire  # noqa: F401


@pytest.mark.slow
def test_another_machine_goes_on_bit_for_bit(bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_demonstrations("toy", tmp_path / "toy.hdf5", episodes=4, seed=0, quality="expert", workers=1)
    store().put_file(str(tmp_path / "toy.hdf5"), f"{bucket}/toy.hdf5")
    debug, url = PRESETS["debug"][1], f"s3://{bucket}/runs/x"
    experiment = dataclasses.replace(
        debug,
        agent=dataclasses.replace(debug.agent, net=MLP(width=8, depth=1)),
        data=DataConfig(path=f"s3://{bucket}/toy.hdf5"),
        steps=6,
        checkpoint_every=2,
        batch_size=8,
        tensorboard=False,
    )
    whole = training.train(experiment, tmp_path / "whole", progress=False)
    update = loop.Trainer._update

    def stopped(self):
        if self.step == 5:
            raise RuntimeError("the machine is gone")
        return update(self)

    with monkeypatch.context() as dying:
        dying.setattr(loop.Trainer, "_update", stopped)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            training.train(experiment, url, progress=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    loaded = Run.load(url)
    assert loaded.step == 4 and loaded.path.is_relative_to(tmp_path / "b")
    made = loaded.resume(progress=False)
    assert made.step == 6 and address_of(made.path).url == url
    for name in ("weights", "ema", "optim"):
        mine, theirs = (files.read_tensors(run.checkpoint / f"{name}.safetensors") for run in (made, whole))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert made.contract.dataset_id == f"s3://{bucket}/toy.hdf5"
    assert made.contract.dataset_sha256 == files.sha256(tmp_path / "toy.hdf5")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    record = evaluate(url, episodes=2, progress=False)
    assert record.run == url and record.training["experiment"]["data"]["path"] == f"s3://{bucket}/toy.hdf5"
    assert [name for name in store().find(f"{bucket}/runs/x/eval") if name.endswith(".json")]
    assert store().exists(f"{bucket}/runs/x/metrics.csv")
    assert checkpoint.newest(made.path) == "step_00000006"
    everything = b"".join(store().cat_file(name) for name in store().find(f"{bucket}/runs/x"))
    assert b"secret-of-a-user" not in everything + capsys.readouterr().err.encode()
