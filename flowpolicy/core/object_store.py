"""Object stores by fsspec: names of places in them, whole objects in both directions, one sentence for what goes wrong.

An object appears whole or not at all when it is written under its name, and nothing can be renamed. Credentials are
those of the store's own library (``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID``, a role of the machine, ...): no name that is
accepted here holds one, and so none gets into a log, a record or a contract.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import ConfigError, MissingExtraError, StoreError
from flowpolicy.core.files import SPARE, naming_full_disk, require_space, sha256

SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp", "http": "aiohttp"}
"""Scheme -> package that speaks it."""
_PLACE = re.compile(r"([a-z][a-z0-9+.-]*):/{1,2}(.*)", re.S | re.I)
_LONGEST = 900
_BLOCK = 8 << 20
"""Bytes per request of a download, and four requests go on at a time."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of all."""


@dataclasses.dataclass(frozen=True)
class Address:
    """A place in an object store."""

    scheme: str
    """'s3', 'gs', 'https' or 'http'."""
    path: str
    """Bucket or host, and what follows, without slashes at its ends."""

    @property
    def url(self) -> str:
        """The place as it is named everywhere."""
        return f"{self.scheme}://{self.path}"

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str) -> Address:
        return Address(self.scheme, f"{self.path}/{name}")


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """What a store says of one object."""

    size: int
    """Bytes."""
    version: str
    """Another one for other content: the store's tag, or the time of the last change where it has none."""


def find_address(place: str | os.PathLike[str]) -> Address | None:
    """The place in a store that a name means; None where it is a path, or of a scheme that no store has.

    ``pathlib`` makes one slash of two: ``s3:/bucket/x`` is read as ``s3://bucket/x``.

    Raises:
        ConfigError: the name holds a password or a token, or cannot be one.

    """
    text = os.fspath(place)
    found = _PLACE.fullmatch(text)
    if found is None or found[1].lower() not in SCHEMES:
        return None
    scheme, path = found[1].lower(), found[2].strip("/")
    host, *parts = path.split("/")
    if "@" in host or any(mark in path for mark in "?#"):
        raise ConfigError(
            f"the {scheme}:// name for {host.rpartition('@')[2].partition('?')[0]} holds a password, a token or a "
            "query, which would stand in logs and records",
            expected="a bare name, such as s3://bucket/data/lift.hdf5",
            fix="leave it out, and give credentials as the store's own tools take them (AWS_PROFILE, ...)",
        )
    bad = not host or not path.isprintable() or len(path) > _LONGEST or "\\" in path
    if bad or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"'{text[:80]}' names no place in a store", expected=f"{scheme}://BUCKET/NAME")
    if scheme == "http" and host.partition(":")[0] not in ("127.0.0.1", "localhost"):
        raise ConfigError(f"http://{path} can be changed by anybody on the way", fix=f"https://{path}")
    return Address(scheme, path)


def place_name(place: str | os.PathLike[str]) -> str:
    """A path or the place in a store that it means, for logs and records."""
    address = find_address(place)
    return address.url if address else os.fspath(place)


def refuse_address(place: Path) -> None:
    """Refuse a place in a store or on the hub where only a folder of this machine will do."""
    if str(place).startswith("hf:/"):
        raise ConfigError(
            f"hf://{str(place)[3:].strip('/')} is a place on the hub, and this is written to a folder of this machine",
            fix="name a folder, and send a run with flowpolicy push RUN hf://USER/NAME",
        )
    address = find_address(place)
    if address is not None:
        raise ConfigError(
            f"{address.url} is a place in a store, and this is written to a folder of this machine",
            expected="a path; s3:// is taken by train --out, by --data.path, and wherever a run is named",
            fix="name a folder, and copy it with the store's own tools: aws s3 sync FOLDER s3://...",
        )


def read_object_bytes(address: Address) -> bytes:
    """The content of a small object."""
    with _asking(address, "read"):
        return bytes(_system(address).cat_file(_key(address)))


def list_names(address: Address) -> list[str]:
    """Names of objects directly below a place, sorted; none where nothing is."""
    return _below(address, "file")


def list_folders(address: Address) -> list[str]:
    """Names directly below a place that something lies below, sorted; none where nothing is."""
    return _below(address, "directory")


def _below(address: Address, kind: str) -> list[str]:
    with _asking(address, "list"):
        try:
            found = _system(address).ls(_key(address), detail=True)
        except FileNotFoundError:
            return []
    return sorted(each["name"].rstrip("/").rpartition("/")[2] for each in found if each["type"] == kind)


def list_objects(address: Address) -> dict[str, StoredObject]:
    """Everything below a place, or the one object that it names, under ''; empty where nothing is."""
    with _asking(address, "list"):
        system, key = _system(address), _key(address)
        try:
            info = system.info(key)
        except FileNotFoundError:
            return {}
        if info["type"] == "file":
            return {"": _stored(info)}
        listed = system.find(key, detail=True)
    base = f"{address.path}/"
    return {name.removeprefix(base): _stored(info) for name, info in listed.items() if name != address.path}


def write_object(address: Address, content: bytes | Path, *, only_new: bool = False) -> bool:
    """Write one object, whole or not at all.

    Args:
        address: where.
        content: bytes, or the file that holds them.
        only_new: leave what is there already.

    Returns:
        Whether it was written.

    """
    with _asking(address, "write"):
        system, key = _system(address), _key(address)
        try:
            if isinstance(content, Path):
                system.put_file(str(content), key)
            else:
                system.pipe_file(key, content, **({"mode": "create"} if only_new else {}))
        except FileExistsError:
            return False
    return True


def remove_objects(address: Address, names: list[str]) -> None:
    """Remove objects below a place; those that are gone already are no error."""
    with _asking(address, "remove"), contextlib.suppress(FileNotFoundError):
        if names:
            _system(address).rm([_key(address / name) for name in names])


def download_object(
    address: Address,
    stated: StoredObject,
    part: Path,
    progress: Callable[[int], None] = lambda there: None,
    *,
    hashed: bool = False,
    attempts: int = 5,
    pause: float = 1.0,
) -> str:
    """Fill ``part`` with an object, from where an earlier call stopped, and return its SHA-256.

    What has arrived stays in ``part`` when it breaks off; of an object that has changed since, nothing is kept.

    Args:
        address: of the object.
        stated: what the store says of it.
        part: file to fill.
        progress: called with the bytes that are there.
        hashed: whether the caller knows what the hash must be, so that the store need not be asked whether the object
            was changed meanwhile.
        attempts: times to ask in a row without a byte of progress.
        pause: seconds before the second attempt; doubles with every further one.

    Raises:
        StoreError: it cannot be read, or changes while it is.
        FlowPolicyError: the disk is too small for it.

    """
    mark = part.with_name(f"{part.name}.version")
    part.parent.mkdir(parents=True, exist_ok=True)
    if not (mark.exists() and mark.read_text(encoding="utf-8") == stated.version):
        part.unlink(missing_ok=True)
        mark.write_text(stated.version, encoding="utf-8")
    have, failures = part.stat().st_size if part.exists() else 0, 0
    with naming_full_disk(part, "what has arrived is kept"):
        require_space(part.parent, max(0, stated.size - have))
        with part.open("ab") as stream:
            while have < stated.size:
                try:
                    blocks = _blocks(address, have, stated.size)
                except StoreError as error:
                    failures += 1
                    if error.lasting or failures >= attempts:
                        raise
                    time.sleep(pause * 2 ** (failures - 1))
                    continue
                failures = 0
                for block in blocks:
                    stream.write(block)
                    have += len(block)
                    progress(have)
            os.fsync(stream.fileno())
    if have > stated.size or not (hashed or list_objects(address).get("") == stated):
        part.unlink()
        raise StoreError(f"{address.url} was changed while it was read", fix="run the command again")
    mark.unlink()
    return sha256(part)


def _blocks(address: Address, have: int, size: int) -> list[bytes]:
    """The next bytes of an object, in order, as many blocks as arrived whole."""
    starts = list(range(have, size, _BLOCK))[:4]
    ends = [min(start + _BLOCK, size) for start in starts]
    with _asking(address, "read"):
        found = _system(address).cat_ranges([_key(address)] * len(starts), starts, ends, on_error="return")
        whole: list[bytes] = []
        for start, end, block in zip(starts, ends, found, strict=True):
            if isinstance(block, BaseException):
                if not whole:
                    raise block
                break
            if len(block) != end - start:
                if not whole:
                    raise ConnectionError(f"{len(block)} bytes came where {end - start} were asked for")
                break
            whole.append(bytes(block))
    return whole


def require_room(folder: Path, size: int, what: str) -> None:
    """Refuse what a disk has no room for before a byte of it is fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        require_space(folder, size)
    except OSError as error:
        raise StoreError(
            f"{what} needs {(size + SPARE) / 1e9:.3g} GB in {folder}, which has not so much free",
            fix="free some space, or name a folder on another disk in XDG_CACHE_HOME",
        ) from error


def _stored(info: dict[str, Any]) -> StoredObject:
    size = info.get("size")
    if size is None:
        raise OSError("the server does not say how long it is")
    said = [info.get(name) for name in ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "mtime", "updated")]
    return StoredObject(int(size), " ".join(str(each) for each in said if each))


def _key(address: Address) -> str:
    return address.url if address.scheme in ("http", "https") else address.path


def _system(address: Address) -> Any:
    """The library's file system; the same one for every call from this process."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", "remote") from error
    options: dict[str, Any] = {} if address.scheme.startswith("http") else {"use_listings_cache": False}
    if address.scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options |= {"endpoint_url": endpoint} if endpoint else {}
    try:
        return fsspec.filesystem(address.scheme, **options)
    except ImportError as error:
        package = SCHEMES[address.scheme]
        if package == "gcsfs":
            raise ConfigError(f"{address.url} asks for the package 'gcsfs'", fix="pip install gcsfs") from error
        raise MissingExtraError(package, "remote") from error


_SECRET = re.compile(r"(\?|&)\S+|(?<=://)[^/\s]+@")


@contextlib.contextmanager
def _asking(address: Address, verb: str) -> Iterator[None]:
    """Whatever the store or its library raises becomes one sentence, without what was signed."""
    try:
        yield
    except (StoreError, ConfigError, MissingExtraError, FileExistsError):
        raise
    except Exception as error:  # of the library, of botocore, of its HTTP client, of the system
        said = _SECRET.sub("", " ".join(str(error).split()))[:240] or type(error).__name__
        lost = isinstance(error, FileNotFoundError)
        refused = isinstance(error, PermissionError) or "redential" in type(error).__name__ + said
        raise StoreError(
            f"cannot {verb} {address.url}: {said}",
            fix="check the name of the bucket"
            if lost
            else "check your credentials for this store (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...) and their rights"
            if refused
            else "check the network and AWS_ENDPOINT_URL, and try again",
            lasting=lost or refused,
        ) from error
