"""Tables of suites for a report: which suite a folder of records belongs to, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowpolicy.configs.suites import SUITES, Suite
from flowpolicy.evaluate.suite_table import load_records, suite_scores, suite_sheets
from flowpolicy.lab.suite_jobs import find_suite, published_scores, with_added
from flowpolicy.report.gathering import RECORD, suite_records
from flowpolicy.report.run_pages import SuiteTables


def suites_among(paths: Sequence[Path], name: str = "") -> list[SuiteTables]:
    """The tables of those of ``paths`` that are folders of suites.

    Args:
        paths: what a report is about.
        name: of the suite; the one whose arms and tasks the records have unless given.

    """
    folders = dict.fromkeys(folder.resolve() for path in paths if (folder := suite_records(path)))
    return [_tables(folder, name or _suite_of(folder)) for folder in folders]


def _suite_of(records: Path) -> str:
    """Name of the suite that knows most of the records, the smallest of several; empty if none knows any."""
    found = {(path.parent.name, path.stem.rpartition("-seed")[0]) for path in records.glob(f"*/{RECORD}")}

    def known(suite: Suite) -> tuple[int, int]:
        return sum(task in suite.tasks and arm in suite.arms for task, arm in found), -len(suite.tasks)

    best = max(SUITES, key=lambda name: known(SUITES[name]))
    return best if known(SUITES[best])[0] else ""


def _tables(records: Path, name: str) -> SuiteTables:
    if not name:  # arms and tasks that no suite of ours has: all that the folder holds, compared with the first arm
        pairs = sorted({(p.parent.name, p.stem.rpartition("-seed")[0]) for p in records.glob(f"*/{RECORD}")})
        tasks, arms = (list(dict.fromkeys(pair[part] for pair in pairs)) for part in (0, 1))
        found = load_records(records, tasks, arms, common=False)
        folder = records.resolve()
        title = folder.parent.name if folder.name == "records" else folder.name
        return SuiteTables(title, suite_scores(found), suite_sheets(title, found, next(iter(found))))
    suite = with_added(find_suite(name), records, ())
    found = load_records(records, suite.tasks, suite.arms, common=suite.common)
    published = published_scores(suite)
    return SuiteTables(
        name,
        suite_scores(found, score=suite.score, published=published),
        suite_sheets(name, found, suite.reference, score=suite.score, published=published),
        per_cent=suite.score == "success",
    )
