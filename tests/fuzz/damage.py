"""Mutations of small files, and what must hold of each: the readers return, or raise a FlowPolicyError.

    python -m tests.fuzz robomimic --mutations 100000 --seed 0

Mutations know the structure: types, shapes, names, attributes, values and links of HDF5; members of an npz; JSON values
by place; header and tensors of safetensors; and bytes, flipped or cut off. Batches run in a process of their own, so
that a crash or a hang of the HDF5 library is a finding and not the end.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowpolicy.core.checkpoint import MANIFEST
from flowpolicy.core.errors import FlowPolicyError, from_system

from .formats import FORMATS, Format, seal

ODD = (None, True, -1, 0, 2**70, 1e308, float("nan"), "", "ä\0", "../x", [], [[]], {}, {"a": [None]}, [1, "x"], "NaN")
NAMES = ("", "data", "obs", "demo_x", "demo_00001", "episode_", "ünïcode", "a b", "x" * 300, "rewards")
DTYPES = ("f2", "f8", "i1", "u8", "?", "c8", "S3", "V4", "O")


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file in one to three places; says how."""
    if chance.random() < 0.15:
        return damage_bytes(path, chance)
    edit = EDITS[path.suffix]
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
            links = (h5py.SoftLink("/nowhere"), h5py.SoftLink("/"), h5py.ExternalLink("no.hdf5", "/x"))
            del file[name]
            file[name] = chance.choice((*links, np.dtype("f4")))
            return f"{name}: a link, or a type"
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


def damage_safetensors(path: Path, chance: random.Random) -> str:
    """Change the header, or one tensor; the rest stays as it is."""
    from safetensors.numpy import load, save

    content = path.read_bytes()
    if chance.random() < 0.4:
        size = int.from_bytes(content[:8], "little")
        try:
            header = json.loads(content[8 : 8 + size])
            if "graph" in (stated := header.get("__metadata__", {})) and chance.random() < 0.8:
                stated["graph"] = json.dumps(changed_json(json.loads(stated["graph"]), chance))  # of an export
            else:
                header = changed_json(header, chance)
        except (ValueError, TypeError, AttributeError):  # damaged before
            return "unreadable"
        words = json.dumps(header).encode()
        path.write_bytes(len(words).to_bytes(8, "little") + words + content[8 + size :])
        return "header"
    try:
        tensors = load(content)
    except Exception:  # damaged before
        return "unreadable"
    if not tensors:
        return "nothing left"
    name, how = chance.choice(list(tensors)), chance.randrange(4)
    if how == 0:
        del tensors[name]
    elif how == 1:
        tensors[chance.choice(NAMES)] = tensors.pop(name)
    else:
        value = changed_array(tensors[name], chance)
        tensors[name] = value if value.dtype.kind in "biuf" else np.zeros(value.shape, np.float16)
    path.write_bytes(save({key: np.ascontiguousarray(value) for key, value in tensors.items()}))
    return f"{name}: {tensors[name].dtype if name in tensors else 'gone'}"


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


EDITS = {".hdf5": damage_hdf5, ".npz": damage_npz, ".json": damage_json, ".safetensors": damage_safetensors}
"""Ending of a file -> what changes one place of it."""


def outcome(form: Format, chance: random.Random, folder: Path, good: dict[str, bytes]) -> str:
    """Empty where a damaged copy of what is good is read or refused in words, else what went wrong.

    Args:
        form: what is damaged.
        chance: decides how.
        folder: where; holds nothing else.
        good: content of the files.

    """
    for name, content in good.items():
        (folder / name).write_bytes(content)
    name = chance.choice(form.damaged)
    how = f"{name}: {damage(folder / name, chance)}"
    if form.folder and form.sealed and name != MANIFEST:
        seal(folder)
    before = {name: (folder / name).read_bytes() for name in good}
    try:
        form.read(folder if form.folder else folder / name)
    except FlowPolicyError:
        pass
    except BaseException as error:
        if from_system(error) is not None:  # which commands say in words
            return ""
        return f"({how}):\n{traceback.format_exc(limit=-4)}"
    changed = [name for name, content in before.items() if (folder / name).read_bytes() != content]
    return f"({how}): {changed} changed" if changed else ""


def good_files(form: Format, folder: Path) -> dict[str, bytes]:
    """Name -> content of the files of a good one, which is made in a folder of its own."""
    place = folder / "good"
    place.mkdir()
    form.write(place if form.folder else place / form.damaged[0])
    content = {path.name: path.read_bytes() for path in place.iterdir()}
    shutil.rmtree(place)
    return content


def findings(
    name: str, mutations: int, seed: int, folder: Path, batch: int = 500, limit: float = 60.0
) -> Iterator[str]:
    """What went wrong in ``mutations`` mutations, batch by batch in forked processes."""
    good, report = good_files(FORMATS[name], folder), folder / "report"
    start = 0
    while start < mutations:
        report.write_text("")
        child = os.fork()
        if child == 0:
            _run_batch(name, range(start, min(start + batch, mutations)), seed, folder, good, limit, report)
        _, status = os.waitpid(child, 0)
        lines = report.read_text().split("\x1e")[:-1]
        yield from (line for line in lines if not line.startswith("at "))
        start = 1 + max(int(line.removeprefix("at ")) for line in [f"at {start}", *lines] if line.startswith("at "))
        if status:
            yield f"{name} {start - 1}: the process ended with {status}"


def _run_batch(
    name: str, numbers: range, seed: int, folder: Path, good: dict[str, bytes], limit: float, report: Path
) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process
    warnings.simplefilter("ignore")
    try:
        place = folder / "damaged"
        place.mkdir(exist_ok=True)
        with report.open("a") as stream:
            for number in numbers:
                signal.setitimer(signal.ITIMER_REAL, limit)
                stream.write(f"at {number}\x1e")
                stream.flush()
                if wrong := outcome(FORMATS[name], random.Random(f"{name} {seed} {number}"), place, good):
                    stream.write(f"{name} {number} {wrong}\x1e")
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
