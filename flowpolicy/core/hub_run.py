"""Runs on the Hugging Face hub, by its own library: one commit of a repository is one run folder, whole or absent.

::

    README.md                      model card
    flowpolicy-run.json            size and SHA-256 of every other file but the card: see LISTING
    checkpoints/LATEST, checkpoints/step_00001000/...     one checkpoint
    eval/*.json, videos/*, card/*, curves.png, metrics.csv

``hf://USER/NAME@REVISION`` becomes a folder of the cache, named by its commit. The listing comes from the same place as
the files, so it tells damage and edits by hand; what tells one content from another is the commit, which records name.
Only files that a run folder holds are sent and fetched: safetensors, JSON, text, pictures and films. No pickle is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import CheckpointError, ConfigError, FlowPolicyError, MissingExtraError, StoreError
from flowpolicy.core.files import cache_root, held_alone, read_object, replacing_folder, sha256
from flowpolicy.core.object_store import require_room

PREFIX = "hf://"
"""Begins the names of runs of the hub."""
LISTING = "flowpolicy-run.json"
"""File of a repository that says what the run consists of; without it, it is none that this program has put there."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(
    r"checkpoints/LATEST|checkpoints/step_\d{8,}/\w+\.(safetensors|json|md)|(eval|card)/[\w.-]+\.json"
    r"|card/\w+\.(png|md)|videos/[\w.-]+\.(mp4|json)|\w+\.png|(metrics|episodes)\.csv",
    re.ASCII,
)
_BESIDE = ("README.md", LISTING, ".gitattributes", ".gitignore", "LICENSE")
_MOST = 10_000


@dataclasses.dataclass(frozen=True)
class HubName:
    """A run of the hub."""

    repo: str
    """USER/NAME."""
    revision: str = "main"
    """Branch, tag or commit."""

    @property
    def url(self) -> str:
        """The name as it is written everywhere."""
        return f"{PREFIX}{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")


def hub_name(text: str) -> HubName:
    """What ``hf://USER/NAME@REVISION`` means, or the same without ``hf://`` where nothing else can be meant.

    ``pathlib`` makes one slash of two: ``hf:/USER/NAME`` is read as ``hf://USER/NAME``.

    Raises:
        ConfigError: no such name can be.

    """
    if text.startswith(("hf://datasets/", "hf:/datasets/")):
        raise ConfigError(f"{text} is a data set of the hub, and no run", fix=f"--data.path {text}")
    found = _NAME.fullmatch(re.sub("^hf:/{1,2}", "", text))
    if found is None or ".." in text:
        raise ConfigError(
            f"'{text[:120]}' names no run of the hub", expected=f"{PREFIX}USER/NAME or {PREFIX}USER/NAME@REVISION"
        )
    return HubName(f"{found[1]}/{found[2]}", found[3] or "main")


@functools.cache  # a branch may move while a command runs; it means what it meant at first
def fetch_run(name: HubName) -> tuple[Path, HubName]:
    """The folder of a run of the hub, downloaded unless it is there, and its name with the commit.

    Raises:
        CheckpointError: no such run, or one that is not whole.
        StoreError: the hub cannot be reached.
        MissingExtraError: the library is not installed.

    """
    known = name.revision if _COMMIT.fullmatch(name.revision) else ""
    if known and (place := _place(name.repo, known)).exists():
        return place, name
    commit, files = _asked(name, lambda api: _listed(api, name))
    pinned, place = HubName(name.repo, commit), _place(name.repo, commit)
    if not place.exists():
        with held_alone(place.parent, f"the download of {name.url}", wait=True):
            if not place.exists():  # another process may have been first
                require_room(place.parent, sum(files.values()), name.url)
                _download(pinned, files, place)
    return place, pinned


def refuse_cached(home: Path) -> None:
    """Refuse to change a folder of the cache, which is one commit of a repository."""
    cache = _place("x/x", "").parent
    if home.absolute().is_relative_to(cache.absolute()):
        repo, _, commit = home.name.partition("@")
        raise ConfigError(
            f"{home} is a copy of the hub, whose runs stay what they are",
            fix=f"flowpolicy pull {repo.replace('--', '/', 1)}@{commit} --out RUN, then flowpolicy resume RUN",
        )


def pull_run(name: HubName, out: Path) -> HubName:
    """Download a run into a new folder, verified; its name with the commit. Errors as of :func:`fetch_run`."""
    commit, files = _asked(name, lambda api: _listed(api, name))
    pinned = HubName(name.repo, commit)
    _download(pinned, files, out)
    return pinned


def push_run(
    home: Path, names: list[str], latest: str, card: str, repo: str, *, private: bool = False, message: str = ""
) -> HubName:
    """Make a run folder the content of a repository, in one commit; what an earlier push left is removed.

    Args:
        home: run folder.
        names: files in it to send, as paths in it.
        latest: name of the one checkpoint among them.
        card: text of the model card.
        repo: USER/NAME; created if it is not there.
        private: create it for this user alone.
        message: of the commit.

    Returns:
        The name with the commit.

    Raises:
        CheckpointError: the repository holds something else, or was changed meanwhile.
        StoreError: the hub cannot be reached, or refuses.

    """
    for path in names:
        if not _PART.fullmatch(path):
            raise CheckpointError(f"{home / path} is no file of a run folder, and is not sent")
    head = f"{latest}\n".encode()
    files = {path: {"bytes": (home / path).stat().st_size, "sha256": sha256(home / path)} for path in names}
    files[f"{checkpoint.FOLDER}/{checkpoint.LATEST}"] = {"bytes": len(head), "sha256": hashlib.sha256(head).hexdigest()}
    listing = json.dumps({"schema": 1, "files": dict(sorted(files.items()))}, indent=1).encode()
    made: dict[str, bytes] = {
        f"{checkpoint.FOLDER}/{checkpoint.LATEST}": head,
        LISTING: listing,
        "README.md": card.encode(),
    }
    name = HubName(repo)

    def send(api: Any) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api.create_repo(repo, private=private or None, exist_ok=True)
        info = api.model_info(repo)
        there = [str(each.rfilename) for each in info.siblings or ()]
        if LISTING not in there and (other := sorted(set(there) - set(_BESIDE))):
            raise CheckpointError(
                f"{name.url} holds something else, such as {other[0][:80]}: nothing was sent",
                expected="a new repository, or one that flowpolicy push has filled",
                fix="choose another name",
            )
        add = [CommitOperationAdd(path, content) for path, content in made.items()]
        add += [CommitOperationAdd(path, home / path) for path in names]
        gone = [path for path in there if _PART.fullmatch(path) and path not in files]
        operations = [*add, *(CommitOperationDelete(path) for path in gone)]
        done = api.create_commit(repo, operations, commit_message=message or f"Push {latest}", parent_commit=info.sha)
        return str(done.oid)

    return HubName(repo, _asked(name, send, sending=True))


def hub_endpoint() -> str:
    """Address of the hub: https://huggingface.co, or what HF_ENDPOINT says."""
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    return str(constants.ENDPOINT)


def _place(repo: str, commit: str) -> Path:
    return cache_root() / "runs" / "hf" / f"{repo.replace('/', '--')}@{commit}"


def _listed(api: Any, name: HubName) -> tuple[str, dict[str, int]]:
    """Commit, and the files of a repository with their sizes; refused where one is none of a run folder."""
    info = api.model_info(name.repo, revision=name.revision, files_metadata=True)
    commit = str(info.sha or "")
    if not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"the hub names no commit of {name.url}: {commit[:60]!r}")
    files = {str(each.rfilename): int(each.size or 0) for each in info.siblings or ()}
    odd = sorted(path for path in files if path not in _BESIDE and not _PART.fullmatch(path))
    if LISTING not in files or odd or len(files) > _MOST:
        what = (
            f"no {LISTING}" if LISTING not in files else f"the file {odd[0][:80]!r}" if odd else f"{len(files):,} files"
        )
        raise CheckpointError(
            f"{name.url} holds {what}: it is no run that flowpolicy push has put there, and nothing was downloaded",
            expected="safetensors, JSON, films and pictures of a run folder",
            fix="name another repository or revision; a file that was added by hand can be removed on the hub",
        )
    for needed in ("contract.json", checkpoint.MANIFEST):
        if not any(path.endswith(f"/{needed}") for path in files):
            raise CheckpointError(
                f"{name.url} holds no {needed}, without which nobody can say what its policy is for: nothing was "
                "downloaded",
                fix="push the run again: flowpolicy push RUN",
            )
    return commit, {path: size for path, size in files.items() if path not in (".gitattributes", ".gitignore")}


def _download(pinned: HubName, files: Mapping[str, int], place: Path) -> None:
    """Fetch one commit and verify it; nothing is left where that fails."""
    with replacing_folder(place) as folder:
        _asked(
            pinned,
            lambda api: api.snapshot_download(
                pinned.repo, revision=pinned.revision, local_dir=folder, allow_patterns=list(files)
            ),
        )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes of what has arrived
        _require_whole(folder, pinned)
        checkpoint.resolve(folder)
        if place.exists():
            raise CheckpointError(f"{place} was made by somebody else meanwhile, and is untouched")


def _require_whole(folder: Path, name: HubName) -> None:
    """Compare what arrived with its listing."""
    said = read_object(folder / LISTING).get("files")
    if not isinstance(said, dict):
        raise CheckpointError(f"{LISTING} of {name.url} lists no files", fix="name another revision")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    faults = [f"{path}, which {LISTING} does not list" for path in sorted(there - set(said) - set(_BESIDE))]
    for path, stated in said.items():
        if path not in there:
            faults.append(f"no {path}, which {LISTING} lists")
        elif not isinstance(stated, dict) or sha256(folder / path) != stated.get("sha256"):
            faults.append(f"{path} with another content than {LISTING} says")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{name.url} holds {faults[0]}{more}: nothing of it is kept",
            fix="name a revision from before it was changed, or push the run again: flowpolicy push RUN",
        )


def _asked(name: HubName, question: Callable[[Any], Any], *, sending: bool = False) -> Any:
    """What the library answers; whatever it raises is told in one sentence."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    disable_progress_bars()
    try:
        return question(HfApi(library_name="flowpolicy"))
    except FlowPolicyError:
        raise
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{PREFIX}{name.repo} has no revision '{name.revision}'", fix="name a branch, a tag or a commit of it"
        ) from error
    except Exception as error:  # of the library, of its HTTP client, of the system
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, LocalTokenNotFoundError | RepositoryNotFoundError):
            raise CheckpointError(
                f"the hub takes nothing for {PREFIX}{name.repo} with this login"
                if sending
                else f"{PREFIX}{name.repo} is not there, or not for this login",
                fix=f"check the name, and log in with {'a token that may write' if sending else 'a token'}: HF_TOKEN, "
                "or `hf auth login`",
            ) from error
        if status in (409, 412):
            raise CheckpointError(
                f"{PREFIX}{name.repo} was changed by somebody else meanwhile", fix="push again"
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said, verb = " ".join(lines[:2])[:300] or type(error).__name__, "sent" if sending else "fetched"
        known = f"; a commit that was fetched before needs no network: {PREFIX}{name.repo}@COMMIT"
        raise StoreError(
            f"{name.url} cannot be {verb}: {said}",
            fix=f"check the network and try again; nothing half was left{'' if sending else known}",
        ) from error
