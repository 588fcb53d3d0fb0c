"""Runs in an object store, whole or absent, although nothing can be renamed there.

::

    URL/writers/00000001.json                              who trained; the one with the highest number does
    URL/checkpoints/00000001-step_00001000-ab12cd34ef56/   files of a checkpoint, of one content for ever
    URL/checkpoints/00000001-step_00001000-ab12cd34ef56.json
                                                           pointer: size and SHA-256 of each of them; written last
    URL/eval/*.json, metrics.csv, curves.png, ...          records and pictures, one object each

The name of a checkpoint holds the number of its writer, its updates and the hash of its manifest, so that nobody ever
writes under a name that others read. Only what a pointer names is a checkpoint; the newest is the last by name whose
objects have the sizes and hashes that its pointer states. The name of an older one goes first when it is pruned, and
only after the newer pointer is there.

On this machine a run lies in ``~/.cache/flowpolicy/runs/s3/BUCKET/NAME/writer_00000001``, an ordinary run folder with
:data:`MARK`, which says what it is a copy of.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import CheckpointError, ConfigError, FlowPolicyError, StoreError, StoreWarning
from flowpolicy.core.files import (
    cache_root,
    flush,
    held_alone,
    read_object,
    replacing_folder,
    sha256,
    write_json,
    write_text,
)
from flowpolicy.core.object_store import (
    Address,
    StoredObject,
    download_object,
    find_address,
    list_folders,
    list_names,
    list_objects,
    read_object_bytes,
    remove_objects,
    require_room,
    write_object,
)

MARK = "remote.json"
"""File of a run folder that says which run of a store it is: url, number of the writer, and whether we are that."""
SNAPSHOT = ".upload-"
"""Begins the names of folders in it that hold what is on its way."""
_WRITERS = "writers"
_BESIDE = "run"
"""Folder of a stored checkpoint with what lies beside checkpoints in a run folder and is needed to go on."""
_POINTER = re.compile(r"(\d{8})-(step_\d{8,})-([0-9a-f]{12})\.json")


def begin(place: str | os.PathLike[str]) -> Path:
    """The folder in which a new run is trained: the path itself, or one of this machine whose run goes to a store.

    Raises:
        ConfigError: the store holds a run there.
        StoreError: nothing can be written there.

    """
    address = find_address(place)
    if address is None:
        return Path(place)
    if address.scheme not in ("s3", "gs") or "/" not in address.path:
        raise ConfigError(f"{address.url} is no place for a run", expected="s3://BUCKET/NAME or gs://BUCKET/NAME")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            f"--out {address.url} with several processes", fix="name a folder, and copy it when the run is done"
        )
    if _pointers(address):
        raise ConfigError(
            f"{address.url} already holds a run", fix=f"flowpolicy resume {address.url}, or choose another --out"
        )
    return _claimed(address)


def take_over(home: Path) -> Path:
    """The folder in which this machine goes on with a run: itself, or a new one where another machine trained it.

    From then on whoever trained it before is refused its next checkpoint.

    Raises:
        StoreError: somebody else has taken over a run of this machine, or the store cannot be reached.

    """
    mark = _mark_of(home)
    if mark is None:
        return home
    address = _address_of(mark)
    if mark["mine"]:
        require_still_ours(home)
        return home
    folder = checkpoint.resolve(home)
    ours = _claimed(address)
    shutil.copytree(folder, ours / checkpoint.FOLDER / folder.name, copy_function=os.link)
    write_text(ours / checkpoint.FOLDER / checkpoint.LATEST, f"{folder.name}\n")
    for name in _beside(home):
        (ours / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / name, ours / name)
    return ours


def address_of(home: Path) -> Address | None:
    """The place in a store that a run folder is a copy of; None for any other folder."""
    mark = _mark_of(home)
    return None if mark is None else _address_of(mark)


def require_still_ours(home: Path) -> None:
    """Raise unless nobody has taken the run over."""
    mark = _mark_of(home)
    if mark is None:
        return
    address = _address_of(mark)
    last = _last_writer(address)
    if last != mark["writer"]:
        who = json.loads(read_object_bytes(address / _WRITERS / f"{last:08d}.json")) if last else {}
        raise TakenOverError(
            f"{address.url} is trained by somebody else since {who.get('since', 'it was begun')} "
            f"({who.get('host', 'unknown host')}, process {who.get('process', '?')})",
            expected="one training per run",
            fix=f"flowpolicy resume {address.url} goes on from what the other has stored; "
            f"what was trained here is kept in {home}",
            lasting=True,
        )


def publish_remote(home: Path, snapshot: Path, keep: int) -> str:
    """Store a checkpoint, the pointer last, and prune what is older; return its name in the store.

    Killed at any moment, the newest checkpoint there is the previous whole one.

    Args:
        home: run folder.
        snapshot: files of the checkpoint, and in the folder 'run' of what lies beside checkpoints.
        keep: how many newest checkpoints stay; 0 keeps all.

    """
    mark = _mark_of(home)
    if mark is None:
        raise CheckpointError(f"{home} is no run of a store")
    address, writer = _address_of(mark), int(mark["writer"])
    require_still_ours(home)
    step = int(read_object(snapshot / "state.json")["step"])
    name = f"{writer:08d}-step_{step:08d}-{checkpoint.fingerprint(snapshot)[:12]}"
    pointers, files = address / checkpoint.FOLDER, _described(snapshot)
    if f"{name}.json" not in list_names(pointers):
        _store(pointers, name, snapshot, files)
        require_still_ours(home)
        pointer = {"schema": 1, "writer": writer, "step": step, "manifest_sha256": checkpoint.fingerprint(snapshot)}
        write_object(pointers / f"{name}.json", json.dumps({**pointer, "files": files}, indent=1).encode())
    _prune(pointers, name, keep)
    return name


def _store(pointers: Address, name: str, snapshot: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write the files of a checkpoint, and compare what the store lists then."""
    there = list_objects(pointers / name)
    for part, said in files.items():
        # The name holds the hash of the manifest, and that the hashes of what lies in the checkpoint: after a failed
        # attempt those objects are right. Of what lies beside it, the name knows nothing.
        if part.startswith(f"{_BESIDE}/") or part not in there or there[part].size != said["bytes"]:
            write_object(pointers / name / part, snapshot / part)
    _require_stored(pointers / name, files)


def pull(address: Address) -> Path:
    """The newest whole checkpoint of a run in a store, as a checkpoint folder in a run folder of this machine.

    Raises:
        CheckpointError: there is none.
        StoreError: the store cannot be reached.

    """
    there: list[str] | None = None
    passed: list[str] = []
    while (now := _pointers(address)) != there:  # else what was passed over is damaged, and not pruned meanwhile
        there, passed = now, []
        for name in reversed(there):
            try:
                folder = _fetched(address, name)
            except IncompleteError as error:
                passed.append(f"{name}: {error.what}")
                continue
            for line in passed:
                warnings.warn(f"{address.url}: passed over {line}", StoreWarning, stacklevel=2)
            return folder
    if not there and (ours := _only_here(address)):
        return ours
    listed = "; ".join(passed)
    raise CheckpointError(
        f"{address.url} holds no {'whole ' if listed else ''}checkpoint{': ' if listed else ''}{listed}",
        expected="a run that was trained with --out and this name, and stored at least one checkpoint",
        fix=f"check the name, or train: flowpolicy train PRESET --out {address.url}",
    )


def _only_here(address: Address) -> Path | None:
    """The newest checkpoint of a run of this machine that was killed before its first was stored."""
    home = _home(address, _last_writer(address))
    mark = _mark_of(home)
    return checkpoint.resolve(home) if mark and mark["mine"] and checkpoint.newest(home) else None


def push_beside(home: Path, *paths: Path) -> None:
    """Store records and pictures of a run, one object each; nothing is done for a run of this machine alone.

    Raises:
        StoreError: they cannot be stored; they are kept here.

    """
    address = address_of(home)
    if address is None:
        return
    for path in paths:
        if path.is_file():
            try:
                write_object(address / path.relative_to(home).as_posix(), path)
            except StoreError as error:
                raise StoreError(error.what, fix=f"{path} is whole and kept; {error.fix}") from error


class TakenOverError(StoreError):
    """Another machine goes on with a run that this one trained."""


class IncompleteError(CheckpointError):
    """A pointer whose checkpoint is not there as it says."""


def _claimed(address: Address) -> Path:
    """A new folder for the next writer of a run; the store decides between two who come at once."""
    number, mine = _last_writer(address) + 1, uuid.uuid4().hex
    said = {
        "id": mine,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%FT%TZ", time.gmtime()),
    }
    while True:
        place = address / _WRITERS / f"{number:08d}.json"
        # Read back: a store that knows no conditional writes keeps the last one.
        if write_object(place, json.dumps(said).encode(), only_new=True) and _is_mine(place, mine):
            break
        number += 1
    home = _home(address, number)
    if home.exists():  # of a store that was emptied since
        home.rename(home.with_name(f"{home.name}.before-{mine[:8]}"))
    home.mkdir(parents=True)
    write_json(home / MARK, {"url": address.url, "writer": number, "mine": True})
    return home


def _is_mine(place: Address, mine: str) -> bool:
    return bool(json.loads(read_object_bytes(place)).get("id") == mine)


def _last_writer(address: Address) -> int:
    numbers = [name.removesuffix(".json") for name in list_names(address / _WRITERS)]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _home(address: Address, writer: int) -> Path:
    return cache_root() / "runs" / address.scheme / address.path / f"writer_{writer:08d}"


def _mark_of(home: Path) -> dict[str, Any] | None:
    return read_object(home / MARK) if (home / MARK).is_file() else None


def _address_of(mark: dict[str, Any]) -> Address:
    address = find_address(str(mark["url"]))
    if address is None:
        raise CheckpointError(f"{MARK} names '{mark['url']}', which is no place in a store")
    return address


def _pointers(address: Address) -> list[str]:
    """Names of pointers, oldest first."""
    return [name for name in list_names(address / checkpoint.FOLDER) if _POINTER.fullmatch(name)]


def _beside(home: Path) -> list[str]:
    """Files of a run folder that going on needs beside a checkpoint, as paths in it."""
    named = ["metrics.csv", "episodes.csv", "toy.hdf5"]
    replay = sorted(path.relative_to(home).as_posix() for path in (home / "replay").glob("*.safetensors"))
    return [name for name in (*named, *replay) if (home / name).is_file()]


@contextlib.contextmanager
def snapshot_of(home: Path, folder: Path) -> Iterator[Path]:
    """The files of a checkpoint and what lies beside it as they are now, whatever becomes of them meanwhile."""
    place = home / f"{SNAPSHOT}{folder.name}-{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(folder, place, copy_function=os.link)
        for name in _beside(home):
            (place / _BESIDE / name).parent.mkdir(parents=True, exist_ok=True)
            # A log grows in its place; what else there is, is replaced as a whole.
            (shutil.copyfile if name.endswith(".csv") else os.link)(home / name, place / _BESIDE / name)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _described(snapshot: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file by its path."""
    files = sorted(path for path in snapshot.rglob("*") if path.is_file())
    return {
        path.relative_to(snapshot).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def _require_stored(folder: Address, files: dict[str, dict[str, Any]]) -> dict[str, StoredObject]:
    there = list_objects(folder)
    for name, said in files.items():
        if name not in there:
            raise IncompleteError(f"{name} is not there")
        if there[name].size != said["bytes"]:
            raise IncompleteError(f"{name} has {there[name].size:,} bytes instead of {said['bytes']:,}")
    return there


def _prune(pointers: Address, newest: str, keep: int) -> None:
    """Remove what the newest checkpoint makes dispensable: older ones beyond ``keep``, and what no pointer names."""
    known = [name.removesuffix(".json") for name in list_names(pointers) if _POINTER.fullmatch(name)]
    older = [name for name in known if name <= newest]
    gone = older[:-keep] if keep else []
    remove_objects(pointers, [f"{name}.json" for name in gone])
    for name in list_folders(pointers):
        # Of a later writer nothing is touched: it may be writing.
        if (name < newest and name not in older) or name in gone:
            remove_objects(pointers / name, list(list_objects(pointers / name)))


def _fetched(address: Address, pointer: str) -> Path:
    """The checkpoint that a pointer names, in its run folder here; downloaded unless it is there."""
    stem, folder_name, short = pointer.removesuffix(".json"), *_named(pointer)
    try:
        said = json.loads(read_object_bytes(address / checkpoint.FOLDER / pointer))
        files = {_require_inside(name): each for name, each in said["files"].items()}
        sizes = {name: (int(each["bytes"]), str(each["sha256"])) for name, each in files.items()}
        manifest, writer, step = str(said["manifest_sha256"]), int(said["writer"]), int(said["step"])
    except StoreError as error:
        if error.__cause__.__class__ is FileNotFoundError:  # pruned meanwhile
            raise IncompleteError("it was removed meanwhile") from error
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IncompleteError(f"its pointer cannot be read: {error}") from error
    if (f"{writer:08d}-step_{step:08d}", manifest[:12]) != (stem.rpartition("-")[0], short):
        raise IncompleteError("its pointer is of another checkpoint")
    home = _home(address, writer)
    mark = _mark_of(home)
    if mark and mark["mine"] and checkpoint.newest(home) >= folder_name:
        with contextlib.suppress(CheckpointError):  # damaged here: that of the store is taken
            return checkpoint.resolve(home)  # what was stored came from here
    final = home / checkpoint.FOLDER / folder_name
    if not (final / checkpoint.MANIFEST).is_file() or checkpoint.fingerprint(final) != manifest:
        _download(address / checkpoint.FOLDER / stem, sizes, home, final)
    if not mark:
        write_json(home / MARK, {"url": address.url, "writer": writer, "mine": False})
    if not (mark and mark["mine"]):
        write_text(home / checkpoint.FOLDER / checkpoint.LATEST, f"{final.name}\n")
    checkpoint.verify(final)
    _fetch_records(address, home)
    return final


def _named(pointer: str) -> tuple[str, str]:
    """Name of the checkpoint folder, and the first digits of the hash of its manifest."""
    _, folder, digest = pointer.removesuffix(".json").split("-")
    return folder, digest


def _download(stored: Address, sizes: dict[str, tuple[int, str]], home: Path, final: Path) -> None:
    there = _require_stored(stored, {name: {"bytes": size} for name, (size, _) in sizes.items()})
    require_room(home, sum(size for size, _ in sizes.values()), stored.url)
    with held_alone(home / ".fetch", f"the download of {stored.url}", wait=True), replacing_folder(final) as folder:
        for name, (_, digest) in sizes.items():
            inside = name.removeprefix(f"{_BESIDE}/")
            part = home / ".fetch" / f"{digest}.part"
            try:
                found = download_object(stored / name, there[name], part, hashed=True)
            except StoreError as error:
                if error.__cause__.__class__ is FileNotFoundError:
                    raise IncompleteError("it was removed meanwhile") from error
                raise
            if found != digest:
                part.unlink()
                raise IncompleteError(f"{name} has another content than its pointer says (SHA-256 {found[:12]}...)")
            place = folder / name if inside == name else home / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            flush(part)
            part.replace(place)
    shutil.rmtree(home / ".fetch", ignore_errors=True)


def _fetch_records(address: Address, home: Path) -> None:
    """Evaluations that others have stored, as far as they are not here."""
    for name in list_names(address / "eval"):
        place = home / "eval" / _require_inside(name)
        if name.endswith(".json") and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, read_object_bytes(address / "eval" / name).decode())


def _require_inside(name: str) -> str:
    """The name of a file in a listing; refused where it would lie elsewhere than below the folder."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name != "/".join(parts) or name.startswith("/") or not name.isprintable():
        raise IncompleteError(f"it names the file {name[:80]!r}, which lies outside of it")
    return name


def missing_there(home: Path) -> Path | None:
    """The newest checkpoint of a run of ours where the store does not have it; None where nothing is to be done."""
    address, name = address_of(home), checkpoint.newest(home)
    if address is None or not name:
        return None
    folder = checkpoint.resolve(home)
    ending = f"-{name}-{checkpoint.fingerprint(folder)[:12]}.json"
    return None if any(each.endswith(ending) for each in _pointers(address)) else folder


def never_stored(home: Path, why: FlowPolicyError) -> FlowPolicyError:
    """What a command fails with whose checkpoints did not all reach the store."""
    if isinstance(why, TakenOverError):
        return why
    address = address_of(home)
    return StoreError(
        f"the newest checkpoint of {address.url if address else home} is not in the store: {why.what}",
        expected=f"nothing is lost: it is whole in {home}",
        fix=f"{why.fix}; then flowpolicy resume {home} stores it",
    )
