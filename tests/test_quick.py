"""What ``make quick`` runs: a test of every room, marked ``@pytest.mark.quick("what it stands for")``."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WANTED = {
    *("core", "flows", "nets", "data", "policy", "engine", "cloning", "offline", "students", "groups", "toy", "train"),
    *("exact resume", "evaluate", "report", "serve", "robot", "safety", "laboratory", "command line", "house"),
}
ELSEWHERE = {"bench", "configs", "fuzz"}
"""Rooms that an inner loop does without: speed, presets at their full size, random damage."""


def marks(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.quick":
            yield ast.literal_eval(node.args[0])


@pytest.mark.quick("house")
def test_quick_covers_every_room():
    found = {path: list(marks(path)) for path in TESTS.rglob("test_*.py")}
    assert {what for whats in found.values() for what in whats} == WANTED
    rooms = {path.relative_to(TESTS).parts[0] for path in found if path.parent != TESTS}
    covered = {path.relative_to(TESTS).parts[0] for path, whats in found.items() if whats}
    assert rooms - covered <= ELSEWHERE
