"""House rules that the linter does not know. T20 of ruff keeps ``print`` out of the library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file
    for room in ("flowpolicy", "agents", "envs", "configs", "real_robot", "tests")
    for file in (ROOT / room).rglob("*.py")
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_fit_on_a_screen_or_few(file):
    source = file.read_text(encoding="utf-8")
    assert source.count("\n") <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} at line {node.lineno}"


def test_files_are_named_after_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "v2"}
    assert not [file for file in FILES if vague & set(file.stem.split("_"))]
