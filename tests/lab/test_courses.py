"""The table of distillation methods: one teacher, students per number of evaluations, records, table and picture."""

import dataclasses
import json

import pytest

from flowpolicy.agents.students.distillation import Order
from flowpolicy.core.errors import ConfigError
from flowpolicy.lab.chunk_toy import ChunkToy
from flowpolicy.lab.courses import (
    NFES,
    TEACHER,
    Course,
    parse_course,
    run_course,
    students,
    teacher_of,
)
from flowpolicy.lab.lab_plan import LabPlan
from flowpolicy.lab.lab_report import write_report

TINY = LabPlan(toy=ChunkToy(size=200), updates=6, batch=16, width=16, depth=2, observations=4, samples=8, nfes=NFES)
ORDER = Order(teacher_nfe=4)


def test_rows_are_words():
    course = parse_course("improved-reflow real=0.5 inversion=midpoint teacher_nfe=8", ORDER)
    assert (course.method, course.order.real, course.order.inversion) == ("improved-reflow", 0.5, "midpoint")
    assert course.order.teacher_nfe == 8 and parse_course("boss", ORDER).order == ORDER
    wrong = {
        "reflov": "did you mean 'reflow'",
        "reflow rael=1": "'real'",
        "boss nfe=4": "KEY=VALUE",
        "boss lr=x": "a number",
        "boss lr=0": "boss lr is 0",
    }
    for text, hint in wrong.items():
        with pytest.raises(ConfigError, match=hint):
            parse_course(text, ORDER)


def test_one_student_serves_all_columns_unless_the_method_is_bound_to_one(tmp_path):
    run = teacher_of(TINY, 0, tmp_path)
    wanted = {
        "reflow": [(1, 2, 4)],
        "backward-simulation": [(1, 2, 4)],
        "k-step": [(1,), (2,), (4,)],
        "arcflow": [(1,), (2,), (4,)],
        "boss": [(1,), (2,), (4,)],
        "refiner": [(2,), (4,)],
        "slimflow": [(1,)],
    }
    for method, nfes in wanted.items():
        found = students(run, parse_course(method, ORDER), TINY, 0)
        assert [measured for _, measured in found] == nfes, method
        assert len({config.teacher_weights for config, _ in found}) == 1
    with pytest.raises(ConfigError, match="at least 0 and at most 1"):
        students(run, parse_course("improved-reflow real=2", ORDER), TINY, 0)


def test_records_table_and_picture(tmp_path):
    origin = {"command": "flowpolicy lab --distill all", "commit": "c0ffee"}
    courses = [Course(TEACHER, TEACHER, ORDER), *(parse_course(name, ORDER) for name in ("slimflow", "refiner"))]
    records = [run_course(course, TINY, 4, seed, tmp_path, origin) for course in courses for seed in (0, 1)]
    assert [sorted(record["error"]) for record in records[::2]] == [["1", "2", "4"], ["1"], ["2", "4"]]
    assert records[2]["students"][0]["agent"]["class"] == "slimflow" and records[2]["commit"] == "c0ffee"
    again = run_course(courses[1], TINY, 4, 0, tmp_path, {"command": "another", "commit": ""})
    assert again == records[2]
    other = run_course(dataclasses.replace(courses[1], name="another row"), TINY, 4, 0, tmp_path, origin)
    assert other["error"] == records[2]["error"], "the same seed, the same bits"
    write_report(records, tmp_path, "distill", "Students: few.")
    text = (tmp_path / "distill.md").read_text()
    assert "| slimflow |" in text and "Students: few." in text and "distill.png" in text
    assert (tmp_path / "distill.png").stat().st_size > 5000
    stored = json.loads((tmp_path / "distill.json").read_text())
    assert stored["commit"] == "c0ffee" and set(stored["error"]) == {"teacher", "slimflow", "refiner"}
