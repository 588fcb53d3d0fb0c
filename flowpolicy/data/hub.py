"""Data sets of the Hugging Face hub, by its own library: one revision as a folder, whole or absent, pinned by hashes.

``hf://datasets/USER/NAME@REVISION`` becomes a folder with the files of one commit and :data:`LOCK`, which names the
commit and the SHA-256 of every file. Asked for again, the folder is compared with it, and nothing is downloaded. What
has arrived when a download is stopped waits in a folder beside it, and the next call goes on from there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flowpolicy.core.errors import ConfigError, DataError, FlowPolicyError, MissingExtraError
from flowpolicy.core.files import flush, held_alone, naming_full_disk, read_object, sha256, unchanged_sha256, write_json
from flowpolicy.data.catalogue import Published
from flowpolicy.data.download import Progress, cache_folder, download_part

PREFIX = "hf://datasets/"
"""Begins the names of data sets of the hub."""
LOCK = "flowpolicy-lock.json"
"""File beside the data that says what they are: commit, and size and hash of every file."""
_PARTS = ".parts"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST = 1_000_000


def fetch_hub(name: str, folder: Path | None = None, *, progress: Progress | None = None, pause: float = 1.0) -> Path:
    """The folder of a data set of the hub, downloaded unless it is there.

    Args:
        name: ``hf://datasets/USER/NAME@REVISION``; a branch, a tag or a commit, ``main`` unless given.
        folder: where folders of data sets lie; default in :func:`~flowpolicy.data.download.cache_folder`.
        progress: called with the bytes that are there and those of all files.
        pause: seconds before a broken connection is tried again; doubles with every further one.

    Raises:
        ConfigError: no such name can be.
        MissingExtraError: the library is not installed.
        DataError: no network, no such data set, a file whose content is not the one that the hub states, or names of
            files that would lie outside the folder.

    """
    repo, revision = _parsed(name)
    place = (folder or cache_folder()) / f"{repo.replace('/', '--')}@{revision.replace('/', '--')}"
    if place.exists():
        _require_unchanged(place, repo)
        return place
    partial = place.with_name(f".{place.name}.partial")
    with held_alone(partial, f"flowpolicy data download {name}"), naming_full_disk(place, "what has arrived is kept"):
        said = _pinned(partial, repo, revision)
        _require_room(place, partial, said["files"])
        _download(partial, repo, said, progress, pause)
        shutil.rmtree(partial / _PARTS, ignore_errors=True)
        for file in partial.rglob("*"):
            flush(file)
        (partial / ".lock").unlink()
        partial.rename(place)
        flush(place.parent)
    return place


def _parsed(name: str) -> tuple[str, str]:
    """``USER/NAME`` and the revision."""
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        raise ConfigError(
            f"'{name}' names no data set of the hub", expected=f"{PREFIX}USER/NAME or {PREFIX}USER/NAME@REVISION"
        )
    return f"{found[1]}/{found[2]}", found[3] or "main"


def _require_unchanged(place: Path, repo: str) -> None:
    """Raise unless a folder still holds what its lock says."""
    if not (place / LOCK).is_file():
        raise DataError(
            f"{place} is there and has no {LOCK}, so it cannot be told what it is",
            fix="move it away and download again, or use it as it is: --data.path",
        )
    said = read_object(place / LOCK)
    files = said.get("files")
    if said.get("dataset") != repo or not isinstance(files, dict):
        raise DataError(f"{place / LOCK} is of {said.get('dataset')}", expected=repo, fix="move the folder away")
    for name, pinned in files.items():
        file = place / _require_inside(name)
        if not file.is_file() or not isinstance(pinned, dict) or unchanged_sha256(file) != pinned.get("sha256"):
            what = "has another content than" if file.is_file() else "is missing, and stands in"
            raise DataError(f"{file} {what} {LOCK}", fix=f"move {place} away and download again")


def _pinned(partial: Path, repo: str, revision: str) -> dict[str, Any]:
    """Commit and files: as an earlier call found them, else as the hub says now."""
    if (partial / LOCK).is_file():
        said = read_object(partial / LOCK)
        if said.get("dataset") == repo and said.get("revision") == revision:
            for name in said["files"]:
                _require_inside(name)
            return said
    info = _asked(lambda api: api.dataset_info(repo, revision=revision, files_metadata=True), repo, revision)
    commit, listed = str(info.sha or ""), list(info.siblings or ())
    if not _COMMIT.fullmatch(commit):
        raise DataError(f"the hub names no commit of {repo}@{revision}: {commit[:60]!r}")
    if not listed or len(listed) > _MOST:
        raise DataError(f"{repo}@{revision} has {len(listed)} files", expected=f"1 to {_MOST:,}")
    files: dict[str, Any] = {}
    for each in listed:
        name, lfs = _require_inside(each.rfilename), each.lfs
        stated = {"bytes": int(each.size or 0), "git": str(each.blob_id or ""), "sha256": ""}
        if lfs is not None:
            stated |= {"bytes": int(lfs.size), "sha256": str(lfs.sha256), "git": ""}
        if files.setdefault(name, stated) is not stated:
            raise DataError(f"{repo}@{revision} lists {name} twice")
    said = {"dataset": repo, "revision": revision, "commit": commit, "files": files}
    write_json(partial / LOCK, said)
    return said


def _require_inside(name: Any) -> str:
    """The name of a file in a listing; refused where it would lie elsewhere than below the folder."""
    text = str(name)
    parts = PurePosixPath(text).parts
    bad = not parts or text.startswith("/") or ".." in parts or "\\" in text or ":" in parts[0] or len(text) > 1000
    if bad or not text.isprintable() or parts[0] in (".cache", ".lock", _PARTS, LOCK) or text != "/".join(parts):
        raise DataError(
            f"the listing of the hub names the file {text[:80]!r}",
            expected="paths below the folder of the data set",
            fix="do not use this data set: such a name is an attack or a fault of the server",
        )
    return text


def _require_room(place: Path, partial: Path, files: Mapping[str, Any]) -> None:
    needed = sum(each["bytes"] for name, each in files.items() if not (partial / name).is_file())
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise FlowPolicyError(
            f"{place} needs {needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB are free",
            fix="free some space, or name a folder on another disk: --folder",
        )


def _download(partial: Path, repo: str, said: dict[str, Any], progress: Progress | None, pause: float) -> None:
    """Every file that is not there yet, and its hash into the lock."""
    total, there = sum(each["bytes"] for each in said["files"].values()), 0
    for name, stated in said["files"].items():
        file = partial / name
        if not (file.is_file() and stated.get("checked")):
            part = partial / _PARTS / hashlib.sha256(name.encode()).hexdigest()
            _fetch(part, file, repo, said["commit"], name, _beyond(there, total, progress), pause)
            _require_content(part, name, stated)
            file.parent.mkdir(parents=True, exist_ok=True)
            part.replace(file)
            stated |= {"sha256": stated["sha256"] or sha256(file), "bytes": file.stat().st_size, "checked": True}
            write_json(partial / LOCK, said)
        there += stated["bytes"]
        if progress is not None:
            progress(there, total)
    for stated in said["files"].values():
        stated.pop("checked")
        stated.pop("git", None)
    write_json(partial / LOCK, said)


def _beyond(before: int, total: int, progress: Progress | None) -> Progress | None:
    """Progress of one file as that of all."""
    return None if progress is None else lambda there, _: progress(before + there, total)


def _fetch(part: Path, file: Path, repo: str, commit: str, name: str, progress: Progress | None, pause: float) -> None:
    """The bytes of a file, from where an earlier call stopped; the library begins every file anew."""
    part.parent.mkdir(exist_ok=True)
    location, headers = _asked(lambda api: _location(api, repo, commit, name), repo, commit)
    download_part(Published(name, location), part, file, progress, pause=pause, headers=headers)


def _location(api: Any, repo: str, commit: str, name: str) -> tuple[str, dict[str, str]]:
    """Where a file lies, and what to ask with: another host than the hub's never sees the token."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, name, repo_type="dataset", revision=commit, endpoint=api.endpoint)
    location = str(get_hf_file_metadata(url, endpoint=api.endpoint).location)
    there = urllib.parse.urlsplit(location)
    if there.scheme not in ("http", "https"):
        raise DataError(f"the hub says that {name} lies at {location[:80]}", expected="https://...")
    own = there[:2] == urllib.parse.urlsplit(api.endpoint)[:2]
    return location, _headers() if own else {}


def _headers() -> dict[str, str]:
    """What the library asks with, the user's token among it."""
    from huggingface_hub.utils import build_hf_headers

    return dict(build_hf_headers(library_name="flowpolicy"))


def _require_content(file: Path, name: str, stated: Mapping[str, Any]) -> None:
    """Compare a file with what the hub said of it: its SHA-256, or git's hash of small files."""
    if stated["sha256"]:
        right = sha256(file) == stated["sha256"]
    elif stated["git"]:
        head = f"blob {file.stat().st_size}\0".encode()
        right = hashlib.sha1(head + file.read_bytes(), usedforsecurity=False).hexdigest() == stated["git"]
    else:
        right = file.stat().st_size == stated["bytes"]
    if not right:
        file.unlink()
        raise DataError(
            f"{name} arrived with another content than the hub says",
            fix="the file was removed; try again, and if it happens again the server's copy is damaged",
        )


def _asked(question: Callable[[Any], Any], repo: str, revision: str) -> Any:
    """What the library answers; whatever it raises is told in one sentence."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    disable_progress_bars()
    try:
        return question(HfApi())
    except FlowPolicyError:
        raise
    except Exception as error:  # of the library, of its HTTP client, of the system
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(
            f"{PREFIX}{repo}@{revision} cannot be downloaded: {' '.join(lines[:2])[:300] or type(error).__name__}",
            expected="a data set of the hub and a network; a private one needs HF_TOKEN",
            fix="check the name and the network and try again: what has arrived is kept",
        ) from error
