"""Whatever README.md and the guides in docs/ name exists: commands with their flags, make targets, files, imports."""

import ast
import functools
import itertools
import re
import shlex
import types
from pathlib import Path

import pytest
import tyro

from flowpolicy.cli import COMMANDS, main
from flowpolicy.configs.presets import PRESETS
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.report import compare, load_evaluation
from flowpolicy.evaluate.tables import percent

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text() for page in sorted(ROOT.glob("docs/*.md"))}
GUIDES = "\n".join([README, *PAGES.values()])
BLOCKS = [
    (kind, block.replace("\\\n", " ")) for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", GUIDES, re.S | re.M)
]
SPANS = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", GUIDES, flags=re.S | re.M))
SHELL = [block for language, block in BLOCKS if language in ("", "bash")]
LINES = [line.split("#")[0].strip() for block in SHELL for line in block.splitlines()]
COMPLETE = [line for line in LINES if line.startswith("flowpolicy ") and "..." not in line]
MENTIONED = [span for span in SPANS if span.startswith("flowpolicy ") and "..." not in span and "my-preset" not in span]


ARMS = {
    "flow BC": "flow-bc",
    "`fisher`, score": "fisher-score-2",
    "`fisher`, isotropic": "fisher-iso-2",
    "`fisher`, proxy as released": "fisher-proxy-2",
    "`mean-flow-q`": "mean-flow-q",
    **{name: name.lower() for name in ("FQL", "QC", "IFQL", "IQL")},
}


@pytest.fixture
def parse_only(monkeypatch):
    """Every command parses its arguments, and then does nothing."""
    cli = tyro.cli

    def parse(function, **options):
        @functools.wraps(function)
        def idle(*args, **kwargs):
            return 0

        return cli(idle, **options)

    monkeypatch.setattr("flowpolicy.commands.arguments.tyro", types.SimpleNamespace(cli=parse))
    for name in ("commands.train.train", "train.training.train", "commands.train.report"):
        monkeypatch.setattr(f"flowpolicy.{name}", lambda *args, **kwargs: None)
    monkeypatch.setattr("flowpolicy.train.together.train_together", lambda *args, **kwargs: [])
    monkeypatch.setattr("flowpolicy.train.verify.verify_resume", lambda *args, **kwargs: None)
    # `online` reads its options from the run that it continues.
    stored = types.SimpleNamespace(experiment=PRESETS["fql-cube-single"][1], checkpoint=Path(), data=lambda: None)
    monkeypatch.setattr("flowpolicy.train.run.Run.load", lambda run: stored)


def exit_code(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def test_named_commands_are_accepted(parse_only):
    refused = []
    for command in sorted(set(COMPLETE + MENTIONED)):
        words = shlex.split(command)[1:]
        if command not in COMPLETE and not any(word.startswith("-") for word in words):
            words.append("--help")  # a mention may leave out what a complete command needs
        refused += [command] if exit_code(words) else []
    assert not refused


def test_wrong_commands_would_be_noticed(parse_only):
    lines = ["mkae", "data mkae lift", "train dm1-lft", "card runs/lift --episode-s 3", "bench updat"]
    assert [exit_code(line.split()) for line in lines] == [2] * len(lines)


def test_every_command_line_tool_is_shown():
    shown = {command.split()[1] for command in COMPLETE + MENTIONED}
    assert set(COMMANDS) - {"demo"} <= shown  # 'make demo' runs it


def test_named_flags_exist(capsys):
    def help_of(*words):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        return capsys.readouterr().out

    known = ""
    for command in COMMANDS:
        known += (shown := help_of(command))
        if re.search(r"^(actions|measurements):$", shown, re.M):
            known += "".join(help_of(command, action) for action in re.findall(r"^  ([\w-]+)  ", shown, re.M))
    offline = [f"{agent}-door-human" for agent in ("fql", "ifql", "iql", "rebrac", "qc", "fisher")]
    for preset in ("gdro-lift", "dm1-lift-image", *offline):
        known += help_of("train", preset)
    # Options of the axes are shown where one is picked.
    known += help_of("train", "dm1-lift", "--flow.loss", "adaptive")
    flags = {span.split()[0] for span in SPANS if span.startswith("--")}
    assert flags
    assert not [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", known)]


def tables(text):
    """Every table as (headings, rows), a row by its headings; so that columns may move and prose around them change."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else [] for line in text.split("\n")
    ]
    for filled, group in itertools.groupby(lines, bool):
        if filled:
            headings, _, *rows = group
            yield headings, [dict(zip(headings, row, strict=True)) for row in rows]


def test_reported_figures_are_those_of_their_records():
    shown = 0
    for headings, rows in (*tables(README), *tables(PAGES["docs/results.md"])):
        for row in rows if {"method", "NFE", "success", "record"} <= set(headings) else ():
            evaluation = load_evaluation(ROOT / row["record"].strip("`"))
            experiment, told = evaluation.training["experiment"], f"{row}"
            assert (row["NFE"], row["success"]) == (str(evaluation.nfe), percent(evaluation.success)), told
            assert experiment["agent"]["class"] == row["method"].lower().replace(" ", "_"), told
            assert f"{experiment['steps']:,} updates" in told and evaluation.step == experiment["steps"]
            assert evaluation.plan == make_plan(evaluation.plan.env_id, 100, 0), told
            assert not evaluation.commit.endswith("-dirty"), told
            shown += 1
    assert shown >= 18


def test_the_table_of_offline_rl_is_that_of_the_records():
    rows = next(rows for headings, rows in tables(PAGES["docs/results.md"]) if {"arm", "NFE"} <= set(headings))
    shown = {}
    for row in rows:
        name, nfe = row["arm"], row["NFE"]
        for task, cell in ((found[1], row[title]) for title in row if (found := re.search(r"`(.+?)`", title))):
            suite = task if task == "door-human" else "offline-rl"
            arm = "fisher" if suite == "door-human" and name == "`fisher`, score" else ARMS[name]
            files = sorted((ROOT / "docs" / "records" / suite / task).glob(f"{arm}-seed*.json"))
            found = [load_evaluation(path) for path in files]
            assert cell == (", ".join(percent(evaluation.success) for evaluation in found) or "not run")
            assert all(str(e.nfe) == nfe and e.plan == make_plan(e.plan.env_id, 50, 0) for e in found)
            assert all(e.step == 50_000 and e.training["experiment"]["batch_size"] == 64 for e in found)
            assert not any(evaluation.commit.endswith("-dirty") for evaluation in found)
            shown |= dict.fromkeys(files)
    assert set(shown) == {
        *ROOT.glob("docs/records/offline-rl/*/*.json"),
        *ROOT.glob("docs/records/door-human/*/*.json"),
    }


def test_the_table_of_dispersion_is_that_of_the_records():
    (rows,) = (rows for headings, rows in tables(PAGES["docs/pictures.md"]) if "regulariser" in headings)
    for arm, row in zip(("off", "features", "trunk"), rows, strict=True):
        for seed in (int(title[5:]) for title in row if title.startswith("seed ")):
            found = load_evaluation(ROOT / f"docs/records/dispersion/lift-image/{arm}-seed{seed}.json")
            chosen = found.training["experiment"]["agent"]["dispersive"]
            assert row[f"seed {seed}"] == percent(found.success) and found.step == 600
            assert found.training["experiment"]["seed"] == seed and found.plan == make_plan(found.plan.env_id, 50, 0)
            assert (chosen["weight"], chosen["place"]) == ((0.0, "features") if arm == "off" else (0.5, arm))


@pytest.mark.parametrize("folder", ["gdro-toy", "gdro-can"])
def test_the_tables_of_post_training_are_those_of_the_records(folder):
    records = ROOT / "docs" / "records" / folder
    base, shown = load_evaluation(records / "base.json"), set()
    part = next(part for part in (ROOT / "docs/gdro.md").read_text().split("\n# ") if f"docs/records/{folder}/" in part)
    for cells in (list(row.values()) for _, rows in tables(part) for row in rows):
        if len(cells) != 7 or not cells[6].endswith(".json`"):
            continue
        evaluation = load_evaluation(records / cells[6].strip("`"))
        assert evaluation.plan == base.plan == make_plan(base.plan.env_id, 200, 0) and evaluation.nfe == 1
        assert cells[3] == percent(evaluation.success)
        assert cells[2] == str(evaluation.training["experiment"]["seed"])
        assert not evaluation.commit.endswith("-dirty")
        shown.add(cells[6].strip("`"))
        if shown > {"base.json"}:
            found = compare(evaluation, base)
            assert cells[4:6] == [f"{found.only_a} / {found.only_b}", f"{found.p_value:.2g}"]
    assert shown == {path.name for path in records.glob("*.json") if not path.name.startswith("dev-")}


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {text.split()[1] for text in LINES + SPANS if re.match(r"make \w", text)}
    assert named
    assert named <= targets


def test_named_files_exist():
    files = {span for span in SPANS if "/" in span and re.fullmatch(r"[\w./-]+\.(md|txt|py|toml)", span)}
    assert not [name for name in files if not (ROOT / name).exists()]


def test_the_python_block_imports_what_exists():
    for block in (block for language, block in BLOCKS if language == "python"):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "a guide", "exec"), {})


def test_the_readme_is_short_and_so_are_its_sentences():
    assert README.count("\n") <= 150
    prose = re.sub(r"^```.*?^```|^\|.*?$|^#.*?$|^!.*?$", "", README, flags=re.S | re.M)
    sentences = re.split(r"(?<=[.:;?!])\s+|\n\n|\n- ", prose)
    assert not [sentence for sentence in sentences if len(sentence.split()) > 35]
