"""House rules that the linter does not know. T20 of ruff keeps ``print`` out of the library."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("flowpolicy", "agents", "envs", "configs", "real_robot", "tests")


def test_files_are_named_after_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "v2"}
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    assert not [file for file in files if vague & set(file.stem.split("_"))]
