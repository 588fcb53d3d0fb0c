"""House rules that the linter does not know. T20 of ruff keeps ``print`` out of the library."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("flowpolicy", "agents", "envs", "configs", "real_robot", "tests")


FILES = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]


def test_no_docstring_only_points_elsewhere():
    """An override carries ``@override`` and needs none."""
    empty = re.compile(r'"""See :\w+:`[\w.]+`\."""')
    assert not [str(file.relative_to(ROOT)) for file in FILES if empty.search(file.read_text())]


def test_files_are_named_after_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "v2"}
    assert not [file for file in FILES if vague & set(file.stem.split("_"))]


def test_public_class_names_are_unique():
    """Whoever opens a class by its name lands in the right room."""
    shipped = [file for file in FILES if (ROOT / "tests") not in file.parents]
    names = Counter(
        name for file in shipped for name in re.findall(r"^class ([A-Z]\w*)", file.read_text(), flags=re.MULTILINE)
    )
    assert not [name for name, times in names.items() if times > 1]
