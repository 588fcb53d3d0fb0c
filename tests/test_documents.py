"""Every reference resolves: links between documents, pages named in the code, and no mark of anything outside."""

import re
from pathlib import Path

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.flows.axes.registry import VALUES

ROOT = Path(__file__).parents[1]
ROOMS = ("flowpolicy", "agents", "envs", "configs", "real_robot", "tests")
GENERATED = {ROOT / "docs" / "reference" / "commands.md"}
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/*.md")]
SOURCES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def anchors(page):
    """What GitHub makes of the headings of a page."""
    lines = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", lines, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dangling(target, base):
    """Whether ``path#anchor``, seen from a folder, leads nowhere."""
    path, _, anchor = target.partition("#")
    page = (base / path).resolve()
    return (page not in GENERATED and not page.exists()) or bool(anchor and anchor not in anchors(page))


def test_links_in_documents_resolve():
    broken = []
    for page in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                found = page.name + target if target.startswith("#") else target
                broken += [f"{page.name}: {target}"] * dangling(found, page.parent)
    assert not broken


def test_pages_that_code_names_exist():
    broken = []
    for file in [*SOURCES, *DOCUMENTS]:
        for target in re.findall(r"(?<![\w/.])docs/[\w/-]+\.md(?:#[\w-]*\w)?", file.read_text()):
            broken += [f"{file.relative_to(ROOT)}: {target}"] * dangling(target, ROOT)
    assert not broken


def test_files_that_the_pages_of_methods_name_exist():
    named = re.compile(r"`((?:flowpolicy|agents|real_robot|tests|configs|envs)/[\w/.-]+)`")
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    assert not [f"{page.name}: {path}" for page in pages for path in named.findall(page.read_text())
                if not (ROOT / path).exists()]  # fmt: skip


def test_no_mark_points_outside_the_repository():
    """Such as [algorithms 7.1], (GD-11), R14 of a table nobody has, or a test called after one of them."""
    mark = re.compile(
        r"\[(?:algorithms|flow-methods|franka|features|faults|style|stack|speed|vision) \d[^\]]*\]"
        r"|\b(?:GD|FD|MF|DS|BL)-\d+\b|def test_(?:gd|fd|mf|ds|bl)_\d|# R\d+b?\b|\"\"\"R\d+b?\b|\(R\d+b?\)"
    )
    found = [
        f"{file.relative_to(ROOT)}: {match}"
        for file in [*SOURCES, *DOCUMENTS]
        if file != Path(__file__)
        for match in mark.findall(file.read_text())
    ]
    assert not found


def test_the_page_of_the_laboratory_lists_every_value_and_no_other():
    page = (ROOT / "docs" / "methods" / "flow-laboratory.md").read_text()
    listed = {
        section.split("\n")[0]: set(re.findall(r"^\| `([\w-]+)` \|", section.split("\n## ")[0], flags=re.M))
        for section in page.split("\n### ")[1:]
    }
    assert listed == {axis: set(values) for axis, values in VALUES.items()}
