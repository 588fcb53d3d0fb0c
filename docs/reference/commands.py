"""Hook of MkDocs that makes the page of commands out of the command line's own help."""

from __future__ import annotations

import contextlib
import io
import os
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``reference/commands.md``."""
    files.append(File.generated(config, "reference/commands.md", content=page()))
    return files


def page() -> str:
    """Every command with its help, as Markdown."""
    from flowpolicy.cli import COMMANDS

    os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}  # what a help text is wrapped to
    parts = ["# Commands\n\nThe help of every command, as `flowpolicy COMMAND --help` prints it.\n"]
    for name, (_, about) in COMMANDS.items():
        shown = _help([name])
        parts.append(f"## {name}\n\n{about}\n\n```text\n{shown}\n```\n")
        for action in re.findall(r"^  ([\w-]+)  ", shown, re.M) if _HAS_ACTIONS.search(shown) else ():
            parts.append(f"### {name} {action}\n\n```text\n{_help([name, action])}\n```\n")
    return "\n".join(parts)


_HAS_ACTIONS = re.compile(r"^(actions|measurements):$", re.M)


def _help(words: list[str]) -> str:
    from flowpolicy.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).strip()
