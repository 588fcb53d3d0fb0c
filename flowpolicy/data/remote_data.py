"""Datasets in an object store or on the Hugging Face hub: fetched once into the cache folder, whole or absent.

``s3://``, ``gs://`` and ``https://`` name one object, or a folder of them such as a LeRobot dataset. What a store says
of every object (size, tag or time) decides the folder in the cache, so that an object that was changed is fetched anew
and never mixed with what was there; :data:`LOCK` in it holds the address and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path, PurePosixPath

from flowpolicy.core.errors import DataError, StoreError, StoreWarning
from flowpolicy.core.files import flush, held_alone, read_object, unchanged_sha256, write_json
from flowpolicy.core.object_store import (
    Address,
    Progress,
    StoredObject,
    download_object,
    find_address,
    list_objects,
    require_room,
)
from flowpolicy.core.progress import download_bar
from flowpolicy.data import hub
from flowpolicy.data.download import cache_folder

LOCK = hub.LOCK
_MOST = 1_000_000


def data_place(path: str) -> Path:
    """Where a dataset lies on this machine: at the path, or where it was fetched to from the place that it names.

    Raises:
        ConfigError: the name holds a password, a token or a query.
        DataError: nothing lies there, or its copy here was altered.
        StoreError: it cannot be fetched.

    """
    if path.startswith(hub.PREFIX):
        with download_bar(f"download {path}") as progress:
            return hub.fetch_hub(path, progress=progress)
    address = find_address(path)
    if address is None:
        return Path(path)
    with download_bar(f"download {address.url}") as progress:
        return fetch_data(address, progress=progress)


def lies_elsewhere(path: str) -> bool:
    """Whether a dataset is named by an address instead of a path."""
    return path.startswith(hub.PREFIX) or find_address(path) is not None


def fetch_data(
    address: Address,
    folder: Path | None = None,
    *,
    expected_sha256: str = "",
    progress: Progress | None = None,
    pause: float = 1.0,
) -> Path:
    """The file or folder of a dataset in a store, fetched unless this version of it is there.

    Args:
        address: of one object, or of a folder of them.
        folder: where to; default in :func:`~flowpolicy.data.download.cache_folder`.
        expected_sha256: hash of the one object, where it is known.
        progress: called with the bytes that are there and those of all.
        pause: seconds before a failed request is repeated; doubles with every further one.

    Raises:
        DataError: nothing lies there, it has another hash, or its copy here was altered.
        StoreError: it cannot be fetched; what has arrived is kept for the next call.

    """
    root = (folder or cache_folder()) / address.scheme
    try:
        objects = {_require_inside(name, address): each for name, each in list_objects(address).items()}
    except StoreError as error:
        if earlier := _newest_copy(root, address):
            warnings.warn(f"{error.what}: its copy from before is used, {earlier}", StoreWarning, stacklevel=2)
            return _checked(earlier, address, expected_sha256)
        raise
    if not objects or len(objects) > _MOST:
        raise DataError(
            f"{address.url} holds {'nothing' if not objects else f'{len(objects):,} objects'}",
            expected=f"one object, or a folder of at most {_MOST:,}",
            fix="check the name, with the store's own tools: aws s3 ls, gcloud storage ls, curl -I",
        )
    version = {name: [each.size, each.version] for name, each in sorted(objects.items())}
    key = hashlib.sha256(json.dumps([address.url, version]).encode()).hexdigest()[:16]
    place = root / f"{_label(address)}-{key}"
    if not (place / LOCK).is_file():
        _tell_of_change(root, address)
        _fetch(address, objects, place, progress, pause)
    return _checked(place, address, expected_sha256)


def _fetch(
    address: Address, objects: dict[str, StoredObject], place: Path, progress: Progress | None, pause: float
) -> None:
    partial, total = place.with_name(f".{place.name}.partial"), sum(each.size for each in objects.values())
    with held_alone(partial, f"the download of {address.url}", wait=True):
        if place.exists():  # by another process meanwhile
            shutil.rmtree(partial, ignore_errors=True)
            return
        there = {name: partial / "data" / (name or address.name) for name in objects}
        had = sum(file.stat().st_size for file in there.values() if file.is_file())
        require_room(partial, total - had, address.url)
        hashes, done = partial / "hashes.json", 0
        known = read_object(hashes) if hashes.is_file() else {}
        for number, (name, stated) in enumerate(sorted(objects.items())):
            file = there[name]
            if not (file.is_file() and name in known):
                part = partial / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.part"

                def move(arrived: int, before: int = done) -> None:
                    if progress is not None:
                        progress(before + arrived, total)

                known[name] = download_object(address / name if name else address, stated, part, move, pause=pause)
                file.parent.mkdir(parents=True, exist_ok=True)
                part.replace(file)
                flush(file)
                if stated.size > 1 << 26 or number % 100 == 0:  # of small files a hundred are fetched again
                    write_json(hashes, known)
            done += stated.size
        files = {(name or address.name): {"bytes": objects[name].size, "sha256": known[name]} for name in objects}
        write_json(partial / "data" / LOCK, {"url": address.url, "files": files})
        place.parent.mkdir(parents=True, exist_ok=True)
        (partial / "data").rename(place)
        flush(place.parent)
        shutil.rmtree(partial, ignore_errors=True)


def _checked(place: Path, address: Address, expected: str) -> Path:
    """The file or folder of a copy, which must still be what was fetched."""
    files = read_object(place / LOCK)["files"]
    for name, said in files.items():
        file = place / name
        if not file.is_file() or file.stat().st_size != said["bytes"] or unchanged_sha256(file) != said["sha256"]:
            raise DataError(
                f"{file} {'was altered after it was fetched' if file.is_file() else 'is missing'}",
                expected=f"what came from {address.url}",
                fix=f"remove {place}, and it is fetched again",
            )
    single = place / address.name if list(files) == [address.name] else place
    if expected:
        found = files[address.name]["sha256"] if single != place else ""
        if found != expected.lower():
            raise DataError(
                f"{address.url} has another content than expected (SHA-256 {found or 'of a folder'})",
                expected=expected,
                fix="leave --sha256 out if this content is right",
            )
    return single


def _tell_of_change(root: Path, address: Address) -> None:
    if earlier := _newest_copy(root, address):
        warnings.warn(
            f"{address.url} has changed since it was fetched, and is fetched anew; "
            f"the copy from before stays in {earlier}",
            StoreWarning,
            stacklevel=3,
        )


def _newest_copy(root: Path, address: Address) -> Path | None:
    copies = [path for path in root.glob(f"{_label(address)}-{'?' * 16}") if (path / LOCK).is_file()]
    mine = [path for path in copies if read_object(path / LOCK).get("url") == address.url]
    return max(mine, key=lambda path: path.stat().st_mtime_ns, default=None)


def _label(address: Address) -> str:
    """Beginning of a folder's name: what a person looks for."""
    stem = "".join(mark if mark.isalnum() or mark in "._-" else "-" for mark in address.name)[:60]
    return f"{stem}-{hashlib.sha256(address.url.encode()).hexdigest()[:8]}"


def _require_inside(name: str, address: Address) -> str:
    """The name of an object in a listing; refused where its file would lie elsewhere than below the folder."""
    parts = PurePosixPath(name).parts
    bad = ".." in parts or "\\" in name or name.startswith("/") or len(name) > 1000 or name == LOCK
    if name and (bad or not name.isprintable() or name != "/".join(parts)):
        raise DataError(
            f"{address.url} holds the object {name[:80]!r}",
            expected="names of files below the folder of the dataset",
            fix="do not use this dataset as it is: such a name would be written elsewhere",
        )
    return name
