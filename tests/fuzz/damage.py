"""Mutations of small files, and what must hold of each: the readers return, or raise a FlowPolicyError.

    python -m tests.fuzz robomimic --mutations 100000 --seed 0

Mutations know the structure: types, shapes, names, attributes, values and links of HDF5; members of an npz; JSON values
by place; and bytes, flipped or cut off. Batches run in a process of their own, so that a crash or a hang of the HDF5
library is a finding and not the end.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.spec import Contract, Spec, load_contract, save_contract
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.doctor import describe, diagnose
from flowpolicy.data.groups import Groups, StoredJudge, read_groups, write_groups
from flowpolicy.evaluate.plan import load_plan, make_plan, save_plan
from flowpolicy.evaluate.report import load_evaluation

ODD = (None, True, -1, 0, 2**70, 1e308, float("nan"), "", "ä\0", "../x", [], [[]], {}, {"a": [None]}, [1, "x"], "NaN")
NAMES = ("", "data", "obs", "demo_x", "demo_00001", "episode_", "ünïcode", "a b", "x" * 300, "rewards")
DTYPES = ("f2", "f8", "i1", "u8", "?", "c8", "S3", "V4", "O")


def seed_robomimic(path: Path) -> None:
    """Three episodes, a filter key and a controller."""
    from flowpolicy.envs.robosuite import RobosuiteConfig

    stream = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"], data.attrs["total"] = json.dumps(RobosuiteConfig("Lift").env_args()), 12
        for index in range(3):
            demo, last = data.create_group(f"demo_{index}"), np.eye(1, 4, 3)[0]
            demo["actions"], demo["rewards"], demo["dones"] = stream.uniform(-1, 1, (4, 7)), last, last.astype(int)
            demo.attrs["num_samples"] = 4
            demo["obs/object"], demo["obs/robot0_eef_pos"] = stream.normal(size=(4, 10)), stream.normal(size=(4, 3))
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])


def seed_d4rl(path: Path) -> None:
    """Two episodes."""
    stream = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = stream.normal(size=(12, 4)), stream.uniform(-1, 1, (12, 2))
        file["rewards"], file["terminals"] = stream.normal(size=12), np.zeros(12, bool)
        file["timeouts"], file["infos/qpos"] = np.arange(12) % 6 == 5, stream.normal(size=(12, 3))


def seed_minari(path: Path) -> None:
    """Three episodes with a dictionary of observations."""
    with h5py.File(path, "w") as file:
        for index in range(3):
            episode, stream = file.create_group(f"episode_{index}"), np.random.default_rng(index)
            episode["observations/hand"], episode["observations/goal"] = stream.normal(size=(5, 3)), np.zeros((5, 2))
            episode["actions"], episode["rewards"] = stream.uniform(-1, 1, (4, 2)), stream.normal(size=4)
            episode["terminations"], episode["truncations"] = np.zeros(4, bool), np.arange(4) == 3
            episode.attrs["seed"] = index


def seed_ogbench(path: Path) -> None:
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


def seed_groups(path: Path) -> None:
    """Scored candidates of six states with a judge."""
    import torch

    columns = {"obs": {"state": torch.zeros(6, 2, 3)}, "action": torch.randn(6, 4, 3, 2), "row": torch.arange(6)}
    columns |= {"valid": torch.ones(6, 3, dtype=torch.bool), "score": torch.randn(6, 4)}
    judge = StoredJudge({"shapes": {"state": 3}}, {"a.weight": torch.ones(2, 3)})
    provenance = {"source": "critic", "base": "run", "base_sha256": "ab" * 32}
    groups = Groups(**columns, held_out=torch.arange(6) % 3 == 0, provenance=provenance, judges={"train": judge})
    groups.outcomes["success"] = np.ones((6, 4, 2), dtype=bool)
    write_groups(path, groups)


def seed_contract(path: Path) -> None:
    """The contract of a policy of Lift."""
    from flowpolicy.envs.robosuite import RobosuiteConfig

    spec: Spec = RobosuiteConfig("Lift").spec()
    save_contract(path, Contract(spec=spec, history=1, chunk=8, execute=8, nfe=1, dataset_id="lift.hdf5"))


def seed_plan(path: Path) -> None:
    """A plan of four episodes."""
    save_plan(path, make_plan("toy", 4, 0))


def seed_record(path: Path) -> None:
    """A stored evaluation."""
    record = json.loads((Path(__file__).parents[2] / "docs" / "records" / "dm1-lift.json").read_text())
    record["episodes"] = record["episodes"][:3]
    path.write_text(json.dumps(record))


def read_dataset(path: Path) -> None:
    """All that commands do with a dataset file before they train."""
    for step in (describe, lambda p: load_dataset(DataConfig(path=str(p)))):
        with contextlib.suppress(FlowPolicyError):
            step(path)
    diagnose(load_unchecked(DataConfig(path=str(path))))


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], str]] = {
    "robomimic": (seed_robomimic, read_dataset, "hdf5"),
    "d4rl": (seed_d4rl, read_dataset, "hdf5"),
    "minari": (seed_minari, read_dataset, "hdf5"),
    "ogbench": (seed_ogbench, read_dataset, "npz"),
    "groups": (seed_groups, read_groups, "hdf5"),
    "contract": (seed_contract, load_contract, "json"),
    "plan": (seed_plan, load_plan, "json"),
    "record": (seed_record, load_evaluation, "json"),
}
"""Name -> what writes a good file, what reads it, and how it is damaged."""


def damage(path: Path, kind: str, chance: random.Random) -> str:
    """Damage a file in one to three places; says how."""
    if chance.random() < 0.15:
        return damage_bytes(path, chance)
    edit = {"hdf5": damage_hdf5, "npz": damage_npz, "json": damage_json}[kind]
    return "; ".join(edit(path, chance) for _ in range(chance.choice((1, 1, 2, 3))))


def damage_bytes(path: Path, chance: random.Random) -> str:
    """Flip some bytes, or cut the file off."""
    content = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        size = chance.randrange(len(content))
        path.write_bytes(content[:size])
        return f"cut to {size} bytes"
    places = [chance.randrange(len(content)) for _ in range(chance.choice((1, 2, 8)))]
    for place in places:
        content[place] = chance.randrange(256)
    path.write_bytes(content)
    return f"bytes {places}"


def damage_hdf5(path: Path, chance: random.Random) -> str:
    """Change one node or attribute."""
    with h5py.File(path, "a") as file:
        nodes: list[str] = []
        file.visit(nodes.append)
        if not nodes:
            return "nothing left"
        name = chance.choice(nodes)
        node, how = file[name], chance.randrange(7)
        if how == 0 or (how > 3 and isinstance(node, h5py.Group)):
            return f"{name}: {_damage_attribute(node, chance)}"
        if how == 1:
            del file[name]
            return f"{name}: gone"
        if how == 2:
            link = chance.choice((h5py.SoftLink("/nowhere"), h5py.SoftLink("/"), h5py.ExternalLink("no.hdf5", "/x")))
            del file[name]
            file[name] = link
            return f"{name}: a link"
        if how == 3:
            target = f"{name.rpartition('/')[0]}/{chance.choice(NAMES) or 'x'}"
            with contextlib.suppress(ValueError, KeyError):  # there is one of that name
                file.move(name, target)
            return f"{name}: now {target}"
        value = changed_array(np.asarray(node[()]), chance) if isinstance(node, h5py.Dataset) else None
        del file[name]
        if value is None:
            file.create_group(name)
        elif value.dtype.kind == "O":
            vlen = h5py.vlen_dtype(np.float32) if chance.random() < 0.5 else h5py.string_dtype()
            file.create_dataset(name, value.shape, vlen)
        else:
            with contextlib.suppress(TypeError):
                file[name] = value
        return f"{name}: {None if value is None else (value.dtype, value.shape)}"


def _damage_attribute(node: Any, chance: random.Random) -> str:
    names = list(node.attrs)
    name = chance.choice([*names, "total", "num_samples", "env_args"])
    if name in names and chance.random() < 0.5 and isinstance(node.attrs[name], str):
        with contextlib.suppress(ValueError):
            text = json.dumps(changed_json(json.loads(node.attrs[name]), chance))
            if len(text) < 60_000:  # larger attributes do not fit
                node.attrs[name] = text
            return f"attribute {name} {text[:60]}"
    value = chance.choice((-1, 1e300, "{", "[]", "null", b"\xff", np.zeros(3), np.zeros((2, 0)), "ä", h5py.Empty("f4")))
    node.attrs[name] = value
    return f"attribute {name} {value!r}"


def changed_array(value: np.ndarray, chance: random.Random) -> np.ndarray:
    """Another type, another shape, or other numbers."""
    how = chance.randrange(6)
    if how == 0:
        dtype = chance.choice(DTYPES)
        try:
            with np.errstate(all="ignore"):
                return value.astype(dtype)
        except (ValueError, TypeError):
            return np.zeros(value.shape, dtype)
    if how == 1 and value.ndim:
        return value[: chance.randrange(len(value) + 1)]
    if how == 2:
        return value.reshape(-1) if value.ndim > 1 else value.reshape(*value.shape, 1, 1)
    if how == 3:
        return np.concatenate([value, value]) if value.ndim else np.array([value])
    if how == 4 and value.ndim > 1:
        return value[..., :-1]
    out = value.astype(float) if value.dtype.kind in "biuf" else value.copy()
    if out.size and out.dtype.kind == "f":
        out.reshape(-1)[chance.randrange(out.size)] = chance.choice((np.nan, np.inf, -1.0, 0.5, 255.0, 1e300))
    return out


def damage_npz(path: Path, chance: random.Random) -> str:
    """Change one member."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files if archive[name].dtype.kind != "O"}
    except Exception:  # damaged before: one more edit has nothing to start from
        return "unreadable"
    if not members:
        return "nothing left"
    name, how = chance.choice(list(members)), chance.randrange(6)
    if how == 0:
        del members[name]
    elif how == 1:
        members[chance.choice(NAMES[1:-3])] = members.pop(name)
    else:
        members[name] = changed_array(members[name], chance)
    with path.open("wb") as stream:
        np.savez(stream, **members)
    return f"{name}: {members[name].dtype if name in members else 'gone'}"


def damage_json(path: Path, chance: random.Random) -> str:
    """Change one value of a JSON file, wherever it stands."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "unreadable"
    path.write_text(json.dumps(changed_json(value, chance)), encoding="utf-8")
    return "a value"


def changed_json(value: Any, chance: random.Random) -> Any:
    """The value with one place replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(child)

    walk(value)
    if not places or chance.random() < 0.02:
        return chance.choice(ODD)
    node, key = chance.choice(places)
    how = chance.randrange(5)
    if how == 0 and isinstance(node, dict):
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[chance.choice(NAMES)] = node.pop(key)
    elif how == 2 and isinstance(node, list):
        node.extend(copy.deepcopy(node))
    else:
        node[key] = chance.choice(ODD)
    return value


def outcome(name: str, number: int, seed: int, folder: Path, good: bytes) -> str:
    """Empty where mutation ``number`` is read or refused in words, else what went wrong."""
    _, read, kind = FORMATS[name]
    path = folder / f"damaged.{kind}"
    path.write_bytes(good)
    how = damage(path, kind, random.Random(f"{name} {seed} {number}"))
    before = path.read_bytes()
    try:
        read(path)
    except FlowPolicyError:
        pass
    except BaseException:
        return f"{name} {number} ({how}):\n{traceback.format_exc(limit=-4)}"
    return "" if path.read_bytes() == before else f"{name} {number} ({how}): the file was changed"


def findings(
    name: str, mutations: int, seed: int, folder: Path, first: int = 0, batch: int = 500, limit: float = 60.0
) -> Iterator[str]:
    """What went wrong in ``mutations`` mutations, batch by batch in forked processes."""
    good = folder / "good"
    FORMATS[name][0](good)
    content = good.read_bytes()
    for start in range(first, first + mutations, batch):
        report = folder / "report"
        report.write_text("")
        child = os.fork()
        if child == 0:
            _run_batch(name, range(start, min(start + batch, first + mutations)), seed, folder, content, limit, report)
        _, status = os.waitpid(child, 0)
        lines = report.read_text().split("\x1e")
        yield from (line for line in lines[:-1] if not line.startswith("at "))
        if status:
            yield f"{name} {lines[-2] if len(lines) > 1 else start}: the process ended with {status}"


def _run_batch(name: str, numbers: range, seed: int, folder: Path, good: bytes, limit: float, report: Path) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process
    warnings.simplefilter("ignore")
    try:
        with report.open("a") as stream:
            for number in numbers:
                signal.setitimer(signal.ITIMER_REAL, limit)
                stream.write(f"at {number}\x1e")
                stream.flush()
                if wrong := outcome(name, number, seed, folder, good):
                    stream.write(f"{wrong}\x1e")
        os._exit(0)
    finally:  # never back into the caller's code
        traceback.print_exc()
        os._exit(1)


def main(name: str, mutations: int, seed: int, folder: Path) -> int:
    """Print what goes wrong, and the count."""
    start, found = time.perf_counter(), 0
    for wrong in findings(name, mutations, seed, folder):
        found += 1
        if found <= 20:
            sys.stdout.write(wrong + "\n")
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{name}: {mutations} mutations of seed {seed}, {found} findings, {seconds:.0f} s\n")
    return int(found > 0)
