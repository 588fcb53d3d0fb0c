"""What the meta files of a LeRobot folder say: its features, its episodes, and in which files they stand.

Layouts v2.0, v2.1 and v3.0 (Hugging Face, "LeRobot", 2024 to 2026), read without the library. Everything in them is
taken for what a stranger wrote: paths are made from templates of the file, and none of them leaves the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import DataError, MissingExtraError, nearest

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO = "meta/info.json"
OWN = "meta/flowpolicy.json"
"""What flowpolicy writes beside the meta files: the spec, and how ``observation.state`` is put together."""

_TEMPLATES = {
    2: {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    3: {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
_FIELDS = {2: {"episode_chunk", "episode_index", "video_key"}, 3: {"chunk_index", "file_index", "video_key"}}
_FORMAT = re.compile(r"(0?\d{0,2}d?)?")
_NAME = re.compile(r"\w[\w .-]*")
_LARGEST, _MOST, _LONGEST = 1 << 28, 1 << 22, 1 << 31  # bytes of a meta file, episodes, rows of an episode


@dataclasses.dataclass(frozen=True)
class LeRobotFeature:
    """One entry of ``features``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    """Names of its numbers, or of its axes; empty where the file has none."""
    info: dict[str, Any]
    """What is said of a video."""

    @property
    def is_picture(self) -> bool:
        """Whether it is a stream of pictures, of whatever kind."""
        return self.dtype in ("video", "image") or (self.dtype == "uint8" and len(self.shape) == 3)

    @property
    def channels_first(self) -> bool:
        """Whether the shape of a picture is (channels, height, width)."""
        if self.names and len(self.names) == len(self.shape):
            return self.names[0].startswith("channel")
        return len(self.shape) == 3 and self.shape[0] in (1, 3, 4) and self.shape[2] not in (1, 3, 4)

    @property
    def size(self) -> tuple[int, int, int]:
        """(height, width, channels) of a picture."""
        first, second, third = (*self.shape, 1, 1, 1)[:3]
        return (second, third, first) if self.channels_first else (first, second, third)

    @property
    def why_unread(self) -> str:
        """What keeps a picture from being read; empty where nothing does."""
        said = {str(key).removeprefix("video."): value for key, value in self.info.items()}
        if said.get("is_depth_map") is True:
            return "a stream of depth, which is not read"
        if len(self.shape) != 3:
            return f"pictures of shape {self.shape}, which are not read"
        height, width, channels = self.size
        if channels == 1 or str(said.get("pix_fmt", "")).startswith("gray"):
            return "grey pictures or depth, which are not read"
        if channels != 3:
            return f"pictures of {channels} channels, which are not read"
        if not (0 < height <= 1 << 14 and 0 < width <= 1 << 14):
            return f"pictures of {height} x {width}, which are not read"
        return ""


@dataclasses.dataclass(frozen=True)
class EpisodePlace:
    """Where one episode stands."""

    number: int
    length: int
    tasks: tuple[str, ...]
    """What the table of episodes says of its instructions; empty where it says nothing."""
    data: str
    """Path of the file of its rows, in the folder."""
    videos: dict[str, tuple[str, float]]
    """LeRobotFeature -> path of its file, and the time in seconds at which the episode begins there."""

    @property
    def name(self) -> str:
        """How the episode is called, whatever is selected beside it."""
        return f"episode_{self.number:06d}"


def is_lerobot(path: Path) -> bool:
    """Whether a path is a folder in LeRobot's layout."""
    return path.is_dir() and (path / INFO).is_file()


def stream_name(feature: str) -> str:
    """What an observation is called here: ``front_image`` for ``observation.images.front``."""
    name = feature.removeprefix("observation.")
    if name.startswith("images."):
        name = name.removeprefix("images.").removesuffix("_image") + "_image"
    return name.replace(".", "_")


class LeRobotFolder:
    """The meta files of a folder, read and checked; no rows and no pictures are opened for it.

    Args:
        root: the folder.

    Raises:
        DataError: what they say is not understood, contradicts itself, or leads out of the folder.

    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remarks: list[str] = []
        """What contradicts itself in the folder, or was mended to read it."""
        self.laid_out: dict[str, dict[str, dict[int, int]]] = {}
        """Camera -> video -> episode -> first frame, where they had to be counted through all videos of the camera."""
        self.meta_files = [INFO]
        """Meta files that decide what is read."""
        info = self.read_object(INFO)
        self.version = self._version(info.get("codebase_version"))
        self._layout = int(self.version[1])
        self.fps = self._number(info.get("fps"), f"{INFO}: fps", 0.0, 1e5)
        self.robot_type = info["robot_type"] if isinstance(info.get("robot_type"), str) else ""
        self.features = self._features(info.get("features"))
        self._chunk = self._whole(info.get("chunks_size", 1000), f"{INFO}: chunks_size", 1)
        self._paths = {kind: self._template(info, kind) for kind in ("data_path", "video_path")}
        self.texts = self._read_tasks()
        """Number of an instruction -> its text."""
        self.episodes = self._read_episodes()
        """All of them, by number."""
        self.splits = self._read_splits(info.get("splits"))
        """Name of a split -> spans: first episode, and the one after the last."""
        self._compare(info)

    @property
    def is_shared(self) -> bool:
        """Whether a file holds several episodes."""
        return self._layout == 3

    @property
    def videos(self) -> list[str]:
        """Features that are stored as videos."""
        return [name for name, feature in self.features.items() if feature.dtype == "video"]

    def error(self, what: str, *, expected: str = "", fix: str = "") -> DataError:
        """An error that names the folder."""
        what = "".join(each if each.isprintable() else "?" for each in what)  # words of the folder may be anything
        return DataError(f"{self.root}: {what}", expected=expected, fix=fix or "record, copy or download it again")

    def inside(self, name: str) -> Path:
        """A file of the folder by its path in it.

        Raises:
            DataError: it is none, or lies elsewhere.

        """
        path = self.root / name
        try:
            real = path.resolve()
            found = real.is_relative_to(self.root.resolve())
        except (OSError, RuntimeError, ValueError):  # a ring of links, a name that no system takes
            found = False
        if not found:
            raise self.error(
                f"{name} leads out of the folder",
                expected="a folder that holds its own files",
                fix="copy it with what its links point at: cp -rL; or download it as plain files",
            )
        return path

    def exists(self, name: str) -> bool:
        """Whether the folder holds such a file."""
        try:
            return self.inside(name).is_file()
        except (OSError, ValueError):
            return False

    def read_object(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder."""
        value = self._json(self._text(name), name)
        if not isinstance(value, dict):
            raise self.error(f"{name} holds no JSON object")
        return value

    def open_parquet(self, name: str) -> Any:
        """A ``pyarrow.parquet.ParquetFile`` of the folder."""
        parquet = require_pyarrow()
        path = self.inside(name)
        if not path.is_file():
            raise self.error(f"{name} is missing")
        with self.reading(name):
            return parquet.ParquetFile(path)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Whatever pyarrow raises inside is an error that names the file."""
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            if isinstance(error, pyarrow.ArrowInvalid) and "magic bytes" in str(error):
                raise self.error(
                    f"{name} is no whole parquet file: its footer is missing",
                    fix="whoever wrote it did not close it (finalize()), or a copy stopped early: write it again",
                ) from error
            line = (str(error).splitlines() or [""])[0][:200]
            raise self.error(f"{name} cannot be read: {line or type(error).__name__}") from error

    def select(self, words: str) -> list[EpisodePlace]:
        """The episodes of a split, or of numbers: ``train``, ``7``, ``0:100`` or ``3,7,20:30``; all if empty."""
        if not words:
            return self.episodes
        found = self.within(words) if words in self.splits else self._numbered(words)
        if not found:
            raise self.error(f"the selection {words} holds no episode", fix=f"it has {self._shown()}")
        return found

    def within(self, split: str) -> list[EpisodePlace]:
        """The episodes of a split."""
        spans = self.splits[split]
        return [one for one in self.episodes if any(first <= one.number < end for first, end in spans)]

    def _numbered(self, words: str) -> list[EpisodePlace]:
        spans = [re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", part.strip()) for part in words.split(",")]
        if not all(spans):
            splits = nearest(words, self.splits) if self.splits else "there are no splits"
            raise self.error(
                f"there is no split and no list of episodes '{words}'",
                expected=f"{splits}; or numbers, e.g. 0:100 or 3,7,20:30",
                fix=f"it has {self._shown()}",
            )
        known = {episode.number: episode for episode in self.episodes}
        chosen: dict[int, EpisodePlace] = {}
        for span in filter(None, spans):
            first, end = int(span[1]), int(span[2] or int(span[1]) + 1)
            if not span[2] and first not in known:
                raise self.error(f"there is no episode {first}", expected=self._shown(), fix="select others")
            chosen |= {number: known[number] for number in known if first <= number < end}
        return [chosen[number] for number in sorted(chosen)]

    def _shown(self) -> str:
        first, last = self.episodes[0].number, self.episodes[-1].number
        return f"{len(self.episodes)} episodes, {first} to {last}"

    def _version(self, stated: Any) -> str:
        if not isinstance(stated, str) or (version := "v" + stated.removeprefix("v")) not in VERSIONS:
            raise self.error(
                f"{INFO} states the version {str(stated)[:40]!r}",
                expected=", ".join(VERSIONS),
                fix="convert it with the scripts of LeRobot that came with its version",
            )
        return version

    def _features(self, stated: Any) -> dict[str, LeRobotFeature]:
        if not isinstance(stated, dict) or not stated:
            raise self.error(f"{INFO} lists no features", expected="features: name -> dtype, shape, names")
        found = {}
        for name, entry in stated.items():
            if not _NAME.fullmatch(name) or ".." in name or len(name) > 200:
                raise self.error(
                    f"{INFO} has a feature called {name[:80]!r}",
                    expected="letters, digits, dots, dashes and blanks",
                    fix="rename it in meta and data files",
                )
            if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
                raise self.error(f"{INFO}: the feature {name} states no dtype")
            shape = entry.get("shape") or [1]
            if not isinstance(shape, (list, tuple)) or not all(_is_whole(n) and 0 < n < 1 << 24 for n in shape):
                raise self.error(f"{INFO}: the feature {name} has the shape {str(shape)[:80]}", expected="[7] or so")
            info: dict[str, Any] = next(
                (entry[key] for key in ("info", "video_info") if isinstance(entry.get(key), dict)), {}
            )
            names = tuple(_flat(entry.get("names")))
            found[name] = LeRobotFeature(name, entry["dtype"], tuple(map(int, shape)), names, info)
        return found

    def _template(self, info: Mapping[str, Any], kind: str) -> str:
        """A template of paths, which may name known fields and nothing outside the folder."""
        usual = _TEMPLATES[self._layout][kind]
        stated = info.get(kind)
        if stated is None:
            if kind == "data_path":
                self.remarks.append(f"states no {kind}: {usual} is taken")
            return usual
        if not isinstance(stated, str) or len(stated) > 1000 or not Path(stated.replace("\0", "?")).name:
            raise self.error(f"{INFO}: {kind} names no file", expected=usual)
        try:
            parts = list(string.Formatter().parse(stated))
        except ValueError as error:
            raise self.error(f"{INFO}: {kind} is no template: {error}", expected=usual) from error
        known = _FIELDS[self._layout] - (set() if kind == "video_path" else {"video_key"})
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            if field not in known:
                raise self.error(f"{INFO}: {kind} names the field {field[:40]!r}", expected=", ".join(sorted(known)))
            if conversion or not _FORMAT.fullmatch(spec or "") or (field == "video_key" and spec):
                raise self.error(f"{INFO}: {kind} formats {field} as {(spec or conversion or '')[:20]!r}")
        literal = "".join(text for text, *_ in parts)
        if stated.startswith(("/", "~")) or "\\" in literal or "\0" in literal or ".." in literal or ":" in literal:
            raise self.error(f"{INFO}: {kind} leads out of the folder: {stated[:80]!r}", expected=usual)
        return stated

    def _path(self, kind: str, **fields: Any) -> str:
        """A path in the folder, from its template."""
        made = self._paths[kind].format(**fields)
        if ".." in Path(made).parts or made.startswith("/"):
            raise self.error(f"{INFO}: {kind} leads out of the folder: {made[:80]!r}")
        return made

    def _text(self, name: str) -> str:
        path = self.inside(name)
        if not path.is_file():
            raise self.error(f"{name} is missing")
        if path.stat().st_size > _LARGEST:
            raise self.error(f"{name} has {path.stat().st_size:,} bytes", expected=f"at most {_LARGEST:,}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{name} is no text: {error.reason} at byte {error.start}") from error

    def _json(self, text: str, where: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(f"{where} is not valid JSON: {str(error)[:120]}") from error

    def _lines(self, name: str) -> Iterator[tuple[dict[str, Any], str]]:
        """The objects of a file of JSON lines, and where each stands."""
        self.meta_files.append(name)
        for number, line in enumerate(self._text(name).split("\n"), 1):
            if line.strip():
                value = self._json(line, f"{name}, line {number},")
                if not isinstance(value, dict):
                    raise self.error(f"{name}, line {number}, holds no JSON object")
                yield value, f"{name}, line {number}"

    def _read_tasks(self) -> dict[int, str]:
        """Number -> text, by the number that stands beside it, never by its place."""
        lines, table = "meta/tasks.jsonl", "meta/tasks.parquet"
        first, other = (lines, table) if self._layout == 2 else (table, lines)
        name = first if self.exists(first) else other
        if not self.exists(name):
            self.remarks.append(f"holds no instructions: {first} is missing")
            return {}
        if name != first:
            self.remarks.append(f"holds {name}, and {self.version} has {first}")
        rows = self._task_lines(name) if name == lines else self._task_table(name)
        found: dict[int, str] = {}
        for number, text, where in rows:
            number = self._whole(number, f"{where}: task_index")
            if not isinstance(text, str) or len(text) > 10_000:
                raise self.error(f"{where}: the instruction {number} is no text")
            if found.setdefault(number, text) != text:
                raise self.error(f"{where}: the instruction {number} has two texts")
        return dict(sorted(found.items()))

    def _task_lines(self, name: str) -> Iterator[tuple[Any, Any, str]]:
        for value, where in self._lines(name):
            yield value.get("task_index"), value.get("task"), where

    def _task_table(self, name: str) -> Iterator[tuple[Any, Any, str]]:
        import pyarrow as pa

        self.meta_files.append(name)
        file = self.open_parquet(name)
        with self.reading(name):
            schema = file.schema_arrow
            texts = [each.name for each in schema if each.type in (pa.string(), pa.large_string())]
            # The text is the index of a pandas table, whose name depends on who wrote it.
            text = next((word for word in ("task", "__index_level_0__", *texts) if word in texts), None)
            if "task_index" not in schema.names or text is None or file.metadata.num_rows > _MOST:
                raise self.error(f"{name} holds {', '.join(schema.names)[:200]}", expected="task_index and task")
            rows = file.read(columns=["task_index", text]).to_pydict()
        yield from ((number, task, name) for number, task in zip(rows["task_index"], rows[text], strict=True))

    def _read_episodes(self) -> list[EpisodePlace]:
        found = list(self._episode_table() if self._layout == 3 else self._episode_lines())
        if not found:
            raise self.error("it holds no episode")
        found.sort(key=lambda episode: episode.number)
        if twice := [a.number for a, b in itertools.pairwise(found) if a.number == b.number]:
            raise self.error(f"episode {twice[0]} stands twice in the table of episodes")
        return found

    def _episode_lines(self) -> Iterator[EpisodePlace]:
        lines = "meta/episodes.jsonl"
        if not self.exists(lines):
            raise self.error(
                f"{lines} is missing",
                expected=f"what {self.version} has",
                fix=f"if meta/episodes/ is there, codebase_version in {INFO} should say v3.0",
            )
        for value, where in self._lines(lines):
            number = self._whole(value.get("episode_index"), f"{where}: episode_index", most=_MOST)
            fields = {"episode_chunk": number // self._chunk, "episode_index": number}
            yield EpisodePlace(
                number,
                self._whole(value.get("length"), f"{where}: length", 1, _LONGEST),
                tuple(_flat(value.get("tasks"))),
                self._path("data_path", **fields),
                {key: (self._path("video_path", video_key=key, **fields), 0.0) for key in self.videos},
            )

    def _episode_table(self) -> Iterator[EpisodePlace]:
        folder = self.inside("meta/episodes")
        names = sorted(str(path.relative_to(self.root)) for path in folder.glob("*/*.parquet"))
        if not names:
            raise self.error(
                "meta/episodes holds no table",
                expected="meta/episodes/chunk-000/file-000.parquet",
                fix=f"if meta/episodes.jsonl is there, codebase_version in {INFO} should say v2.1",
            )
        for name in names:
            self.meta_files.append(name)
            file = self.open_parquet(name)
            with self.reading(name):
                wanted = {"episode_index", "length", "tasks", "data/chunk_index", "data/file_index"}
                parts = ("chunk_index", "file_index", "from_timestamp")
                wanted |= {f"videos/{key}/{part}" for key in self.videos for part in parts}
                has = [column for column in file.schema_arrow.names if column in wanted]
                if file.metadata.num_rows > _MOST:
                    raise self.error(f"{name} has {file.metadata.num_rows:,} rows", expected=f"at most {_MOST:,}")
                columns = file.read(columns=has).to_pydict()
            if missing := sorted(wanted - set(has) - {"tasks"}):
                raise self.error(f"{name} has no column {missing[0]}", expected=f"it has {', '.join(has)[:200]}")
            for row in range(file.metadata.num_rows):
                yield self._of_row({column: values[row] for column, values in columns.items()}, f"{name}, row {row}")

    def _of_row(self, row: Mapping[str, Any], where: str) -> EpisodePlace:
        def place(part: str) -> dict[str, int]:
            return {
                key: self._whole(row[f"{part}/{key}"], f"{where}: {part}/{key}", most=10**6)
                for key in ("chunk_index", "file_index")
            }

        videos = {}
        for key in self.videos:
            stated = row[f"videos/{key}/from_timestamp"]
            start = self._number(stated, f"{where}: videos/{key}/from_timestamp", -1.0, 1e9)
            videos[key] = (self._path("video_path", video_key=key, **place(f"videos/{key}")), start)
        return EpisodePlace(
            self._whole(row["episode_index"], f"{where}: episode_index", most=_MOST),
            self._whole(row["length"], f"{where}: length", 1, _LONGEST),
            tuple(_flat(row.get("tasks"))),
            self._path("data_path", **place("data")),
            videos,
        )

    def _read_splits(self, stated: Any) -> dict[str, list[tuple[int, int]]]:
        found = {}
        for name, span in stated.items() if isinstance(stated, dict) else ():
            parts = span.split(",") if isinstance(span, str) else [""]
            matches = [re.fullmatch(r"(\d{1,9}):(\d{1,9})", part) for part in parts]
            if all(matches):
                found[str(name)] = [(int(match[1]), int(match[2])) for match in matches if match]
            else:
                self.remarks.append(f"has a split {str(name)[:40]!r} that is no span of episodes: {str(span)[:40]!r}")
        return found

    def _compare(self, info: Mapping[str, Any]) -> None:
        """What the file says of itself and is not so."""
        rows = sum(episode.length for episode in self.episodes)
        for key, found in (("total_episodes", len(self.episodes)), ("total_frames", rows)):
            if key in info and info[key] != found:
                self.remarks.append(f"says {key} {str(info[key])[:20]} in {INFO}, and its episodes add up to {found}")
        if "total_tasks" in info and info["total_tasks"] != len(self.texts):
            said = str(info["total_tasks"])[:20]
            self.remarks.append(f"says total_tasks {said} in {INFO}, and holds {len(self.texts)} instructions")

    def _whole(self, value: Any, what: str, least: int = 0, most: int = 1 << 40) -> int:
        if not _is_whole(value) or not least <= value <= most:
            raise self.error(f"{what} is {str(value)[:40]!r}", expected=f"a whole number from {least} to {most}")
        return int(value)

    def _number(self, value: Any, what: str, above: float, most: float) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not above < value <= most:
            raise self.error(f"{what} is {str(value)[:40]!r}", expected=f"a number above {above:g}, at most {most:g}")
        return float(value)


@functools.lru_cache(1)
def require_pyarrow() -> Any:
    """The module ``pyarrow.parquet``.

    Raises:
        MissingExtraError: the extra 'lerobot' is not installed.

    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "pyarrow", "lerobot") from error
    except ImportError as error:  # of a version for another NumPy
        raise DataError(f"pyarrow cannot be imported: {error}", fix="pip install 'flowpolicy[lerobot]'") from error
    return pyarrow.parquet


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and value == int(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _flat(value: Any) -> Sequence[str]:
    """The texts in whatever ``names`` and ``tasks`` may be: a list, lists by name, one text, nothing."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner = [_flat(each) if isinstance(each, (list, tuple)) else [str(key)] for key, each in value.items()]
        return [text for texts in inner for text in texts]
    if isinstance(value, (list, tuple)):
        return [text for text in value if isinstance(text, str)]
    return []
