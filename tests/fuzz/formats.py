"""Small good files of every format that a user can hand us, and what reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from flowpolicy.agents.groups.group_file import Groups, StoredJudge, read_groups, write_groups
from flowpolicy.core import checkpoint
from flowpolicy.core.config import encode
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.spec import Contract, Spec, load_contract, save_contract
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.dataset_checks import describe, diagnose
from flowpolicy.evaluate.plan import load_plan, make_plan, save_plan
from flowpolicy.evaluate.report import load_evaluation


def write_robomimic(path: Path) -> None:
    """Two episodes, a filter key and a controller."""
    from flowpolicy.envs.robosuite import RobosuiteConfig

    stream = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"], data.attrs["total"] = json.dumps(RobosuiteConfig("Lift").env_args()), 8
        for index in range(2):
            demo, last = data.create_group(f"demo_{index}"), np.eye(1, 4, 3)[0]
            demo["actions"], demo["rewards"], demo["dones"] = stream.uniform(-1, 1, (4, 7)), last, last.astype(int)
            demo.attrs["num_samples"] = 4
            demo["obs/object"], demo["obs/robot0_eef_pos"] = stream.normal(size=(4, 10)), stream.normal(size=(4, 3))
        file["mask/train"] = np.array([b"demo_1"])


def write_d4rl(path: Path) -> None:
    """Two episodes."""
    stream = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = stream.normal(size=(12, 4)), stream.uniform(-1, 1, (12, 2))
        file["rewards"], file["terminals"] = stream.normal(size=12), np.zeros(12, bool)
        file["timeouts"], file["infos/qpos"] = np.arange(12) % 6 == 5, stream.normal(size=(12, 3))


def write_minari(path: Path) -> None:
    """Two episodes with a dictionary of observations."""
    with h5py.File(path, "w") as file:
        for index in range(2):
            episode, stream = file.create_group(f"episode_{index}"), np.random.default_rng(index)
            episode["observations/hand"], episode["observations/goal"] = stream.normal(size=(5, 3)), np.zeros((5, 2))
            episode["actions"], episode["rewards"] = stream.uniform(-1, 1, (4, 2)), stream.normal(size=4)
            episode["terminations"], episode["truncations"] = np.zeros(4, bool), np.arange(4) == 3
            episode.attrs["seed"] = index


def write_ogbench(path: Path) -> None:
    """Two labelled trajectories."""
    stream, solved = np.random.default_rng(0), np.arange(8) == 5
    np.savez(
        path.open("wb"),
        observations=stream.normal(size=(8, 4)),
        actions=stream.uniform(-1, 1, (8, 2)),
        terminals=np.arange(8) % 4 == 3,
        rewards=solved - 1.0,
        masks=1.0 - solved,
        env_id=np.array("pointmaze-medium-v0"),
    )


def write_groups_file(path: Path) -> None:
    """Scored candidates of six states with a judge."""
    import torch

    columns = {"obs": {"state": torch.zeros(6, 2, 3)}, "action": torch.randn(6, 4, 3, 2), "row": torch.arange(6)}
    columns |= {"valid": torch.ones(6, 3, dtype=torch.bool), "score": torch.randn(6, 4)}
    judge = StoredJudge({"shapes": {"state": 3}}, {"a.weight": torch.ones(2, 3)})
    provenance = {"source": "critic", "base": "run", "base_sha256": "ab" * 32}
    groups = Groups(**columns, held_out=torch.arange(6) % 3 == 0, provenance=provenance, judges={"train": judge})
    groups.outcomes["success"] = np.ones((6, 4, 2), dtype=bool)
    write_groups(path, groups)


def write_contract(path: Path) -> None:
    """The contract of a policy of Lift."""
    from flowpolicy.envs.robosuite import RobosuiteConfig

    spec: Spec = RobosuiteConfig("Lift").spec()
    save_contract(path, Contract(spec=spec, history=1, chunk=8, execute=8, nfe=1, dataset_id="lift.hdf5"))


def write_plan(path: Path) -> None:
    """A plan of four episodes."""
    save_plan(path, make_plan("toy", 4, 0))


def write_record(path: Path) -> None:
    """A stored evaluation."""
    record = json.loads((Path(__file__).parents[2] / "docs" / "records" / "dm1-lift.json").read_text())
    record["episodes"] = record["episodes"][:3]
    path.write_text(json.dumps(record))


def read_dataset(path: Path) -> None:
    """All that commands do with a dataset file before they train."""
    config = DataConfig(path=str(path))
    with contextlib.suppress(FlowPolicyError):
        describe(path)
    # What this refuses load_dataset refuses in the same lines: it does the same and then checks more.
    diagnose(load_unchecked(config))
    load_dataset(config)


def write_checkpoint(folder: Path, agent: str = "debug") -> None:
    """An untrained policy of the toy with 8 hidden units, and the experiment that it would come from."""
    from flowpolicy.agents.cloning.flow import Flow
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.data.normalize import Normalizer
    from flowpolicy.envs import find_env
    from flowpolicy.nets.encoder import StateEncoder
    from flowpolicy.nets.mlp import MLP
    from flowpolicy.train.kinds import KINDS

    experiment = PRESETS["debug"][1]
    small: dict[str, Any] = {"net": MLP(width=8, depth=1), "encoder": StateEncoder(width=4), "chunk": 4, "execute": 2}
    config = Flow(**small) if agent == "flow" else dataclasses.replace(experiment.agent, **small)
    experiment, spec = dataclasses.replace(experiment, agent=config), find_env("toy").spec()
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    sizes = {name: each.shape[0] for name, each in spec.observation.items()}
    built = config.build(contract, Normalizer(sizes, spec.action.size), steps=10, seed=0, compile=False)
    saved = built.policy().save(folder / "run")
    for path in list(saved.iterdir()):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "run")
    stated = {**json.loads((folder / "config.json").read_text()), "experiment": encode(experiment, KINDS)}
    (folder / "config.json").write_text(json.dumps(stated))
    seal(folder)


def write_flow_checkpoint(folder: Path) -> None:
    """Like :func:`write_checkpoint`, of the flow laboratory, whose configurations have most kinds."""
    write_checkpoint(folder, "flow")


def write_package(folder: Path) -> None:
    """The policy of :func:`write_checkpoint`, exported for NumPy."""
    from flowpolicy.policy import Policy
    from flowpolicy.policy.exporting import export

    (folder / "policy").mkdir()
    write_checkpoint(folder / "policy")
    export(Policy.load(folder / "policy"), "numpy", folder / "export")
    for path in list((folder / "export").iterdir()):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "policy")
    (folder / "export").rmdir()


def seal(folder: Path) -> None:
    """Write the hashes of the files anew, as somebody does who edits one on purpose."""
    files = sorted(path for path in folder.iterdir() if path.name != checkpoint.MANIFEST)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(hashes))


def read_checkpoint(folder: Path) -> None:
    """All that commands do with a checkpoint before they train on or act."""
    from flowpolicy.train.run import Run

    run = Run.load(folder)
    with contextlib.suppress(FlowPolicyError):
        run.experiment  # noqa: B018  read when it is asked for
    policy = run.policy()
    each = policy.contract.spec.observation.items()
    obs = {name: torch.zeros(1, policy.contract.history, *spec.shape) for name, spec in each}
    policy.act(obs, torch.Generator().manual_seed(0))


def read_package(folder: Path) -> None:
    """Load the engine of an export and decide once."""
    from flowpolicy.policy.engines import load_engine

    engine = load_engine(folder, "numpy")
    each = engine.contract.spec.observation.items()
    obs = {name: np.zeros((1, engine.contract.history, *spec.shape), np.float32) for name, spec in each}
    engine.act(obs, engine.noise(1, np.random.default_rng(0)))


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file, or folder of files, that a user can hand us."""

    write: Callable[[Path], None]
    """Writes a good one; of a folder, into the empty folder."""
    read: Callable[[Path], Any]
    """All that commands do with one."""
    damaged: tuple[str, ...]
    """The file that is damaged, or those of the folder of which one is; its ending says how."""
    folder: bool = False
    """Whether it is a folder."""
    sealed: bool = True
    """Of a folder: whether its hashes are written anew after the damage, except where the hashes are what is damaged;
    files that differ from their hashes are refused before anything looks at them."""


PACKAGE = ("engine.json", "contract.json", "manifest.json", "batch_1.safetensors", "batch_1.safetensors")
FORMATS: dict[str, Format] = {
    "robomimic": Format(write_robomimic, read_dataset, ("file.hdf5",)),
    "d4rl": Format(write_d4rl, read_dataset, ("file.hdf5",)),
    "minari": Format(write_minari, read_dataset, ("file.hdf5",)),
    "ogbench": Format(write_ogbench, read_dataset, ("file.npz",)),
    "groups": Format(write_groups_file, read_groups, ("file.hdf5",)),
    "contract": Format(write_contract, load_contract, ("file.json",)),
    "plan": Format(write_plan, load_plan, ("file.json",)),
    "record": Format(write_record, load_evaluation, ("file.json",)),
    "config": Format(write_flow_checkpoint, read_checkpoint, ("config.json",), folder=True),
    "manifest": Format(write_checkpoint, checkpoint.resolve, ("manifest.json",), folder=True, sealed=False),
    "weights": Format(write_checkpoint, read_checkpoint, ("ema.safetensors", "normalizer.safetensors"), folder=True),
    "package": Format(write_package, read_package, PACKAGE, folder=True),
}
"""Name -> how a good one is made, what reads it and what of it is damaged."""
