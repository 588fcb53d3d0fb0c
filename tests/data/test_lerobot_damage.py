"""Meta files of LeRobot folders, changed at random: read, or refused in words; no file outside is opened.

``python -m tests.data.test_lerobot_damage 100000`` does what the test does more often.
"""

import copy
import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from flowpolicy.core.errors import DataError, FlowPolicyError
from flowpolicy.data.dataset import DataConfig, open_recording
from tests.data.lerobot_folder import edit_json, write_folder

pytest.importorskip("pyarrow")
pytest.importorskip("av")

STRANGE = [
    *(None, True, -1, 0, 1e308, float("nan"), 2**70, 3.5, [], {}, [[]], {"a": 1}),
    *("", "..", "../../../etc/passwd", "/etc/passwd", "..\\..", "\0", "a" * 5000, "v9", "7:1"),
    *("{episode_index}", "{x.__class__}", "{0}", "{episode_index:>999999999d}"),
]
META = {
    "v2.1": ("meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"),
    "v3.0": ("meta/info.json", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"),
}


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed_json(value, rng: random.Random):
    """The value with something else, nothing, or another name in one to three places."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(places(value)))
        if not path:
            continue
        node = value
        for key in path[:-1]:
            node = node[key]
        how = rng.random()
        if how < 0.6:
            node[path[-1]] = rng.choice(STRANGE)
        elif how < 0.8:
            del node[path[-1]]
        elif isinstance(node, dict):
            node[rng.choice(["", "..", "../x", "a/b", "\0", "x" * 300, "action"])] = node.pop(path[-1])
    return value


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them flipped, cut off or doubled."""
    content, how = bytearray(content), rng.random()
    if how < 0.2:
        return bytes(content[: rng.randrange(len(content))])
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    if how < 0.3:
        start = rng.randrange(len(content))
        content[start:start] = content[start : start + 50]
    return bytes(content)


def damage(content: bytes, name: str, rng: random.Random) -> bytes:
    if name.endswith(".parquet") or rng.random() < 0.25:
        return changed_bytes(content, rng)
    if name.endswith(".json"):
        return json.dumps(changed_json(json.loads(content), rng)).encode()
    lines = [json.loads(line) for line in content.splitlines()]
    return "\n".join(json.dumps(line) for line in changed_json(lines, rng) or [{}]).encode()


def try_all(count: int, root: Path, seed: int = 0) -> list[str]:
    """What went wrong in so many damaged folders."""
    folders = {version: write_folder(root / version, version, cameras=("front",)) for version in META}
    whole = {v: {name: (folders[v] / name).read_bytes() for name in names} for v, names in META.items()}
    wrong, opened = [], []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and watching else None)
    watching: list[int] = []
    rng = random.Random(seed)
    for turn in range(count):
        version = rng.choice(list(META))
        name = rng.choice(META[version])
        (folders[version] / name).write_bytes(damage(whole[version][name], name, rng))
        watching.append(turn)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = DataConfig(str(folders[version]), cameras=("front",) if turn % 2 else ())
                with open_recording(config) as recording:
                    for row in range(min(3, len(recording.names))):
                        recording.episode(row)
                    _ = recording.spec, recording.remarks, recording.files
        except FlowPolicyError as error:
            if not str(error).strip() or "\0" in str(error):
                wrong.append(f"{turn} {name}: {error!r}")
        except Exception as error:  # which is what is looked for
            wrong.append(f"{turn} {name}: {type(error).__name__}: {error}"[:300])
        watching.clear()
        wrong += [f"{turn} {name} opened {path}" for path in opened if _outside(path, root)]
        opened.clear()
        (folders[version] / name).write_bytes(whole[version][name])
    return wrong


def _outside(path: str, root: Path) -> bool:
    """Whether a file is neither of the folders nor of Python's own."""
    return (
        not path.startswith((str(root), sys.prefix, sys.base_prefix, "/proc", "/sys"))
        and os.sep in path
        and not (path.endswith((".py", ".pyc", ".so")))
    )


@pytest.mark.parametrize("template", ["", ".", "./", "a/.."])
def test_a_template_that_names_no_file_is_refused(tmp_path, template):
    folder = write_folder(tmp_path / "set", cameras=())
    edit_json(folder / "meta/info.json", lambda info: info.update(data_path=template))
    with (
        pytest.raises(DataError, match=r"data_path (names no file|leads out)"),
        open_recording(DataConfig(str(folder))),
    ):
        pass


def test_damaged_meta_files_are_read_or_refused_in_words(tmp_path):
    assert not try_all(300, tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = try_all(int(sys.argv[1]), Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    sys.stdout.write("\n".join(found[:50]) + f"\n{len(found)} of {sys.argv[1]} went wrong\n")
