"""One HTML file: facts, films and traces, what draws them, and nothing that is fetched from elsewhere.

Whatever comes from a user's file is JSON or base64 in a block of data, and reaches the page as text. The page's own
script and style are named by their hashes, so that the browser runs no other.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from flowpolicy.core.files import replacing
from flowpolicy.core.spec import library_versions
from flowpolicy.evaluate.report import git_commit
from flowpolicy.report.blocks import Section

UPLOT_VERSION = "1.6.32"
"""Of https://github.com/leeoniya/uPlot, MIT; ``uplot/LICENSE`` travels with it."""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This page draws itself: allow scripts for it. It holds everything and fetches nothing.</noscript>
<script type="application/json" id="facts">{facts}</script>
"""


def write_page(
    path: Path,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    attachments: Mapping[str, bytes | str],
    command: str = "",
) -> int:
    """Write a page, atomically.

    Args:
        path: where to.
        title: of the page.
        subtitle: a line below it.
        sections: what it shows.
        attachments: name -> the bytes of a film, or the JSON text of a trace, which the page reads when it needs them.
        command: command line that asked.

    Returns:
        Its size in bytes.

    """
    style = _part("uplot/uPlot.min.css") + _part("page.css")
    scripts = [_part("uplot/uPlot.iife.min.js"), _part("page.js")]
    allowed = " ".join(_hash(script) for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data: blob:; "
        "media-src blob: data:; base-uri 'none'; form-action 'none'"
    )
    value = {
        "title": title,
        "subtitle": subtitle,
        "sections": [section.to_json() for section in sections if section.blocks],
        "made": {
            "command": command,
            "version": library_versions().get("flowpolicy", ""),
            "commit": git_commit(),
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    }
    licence = _part("uplot/LICENSE").replace("--", "- -")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(
            _TEMPLATE.format(policy=html.escape(policy), title=html.escape(title), style=style, facts=as_data(value))
        )
        for line in _attached(attachments):
            stream.write(line)
        stream.write(f"<!-- uPlot {UPLOT_VERSION}\n{licence}\n-->\n")
        for script in scripts:
            stream.write(f"<script>{script}</script>\n")
        stream.write("</body>\n</html>\n")
    return path.stat().st_size


def as_data(value: Any) -> str:
    """JSON that may stand in a script element: no '<' ends it, and nothing in it is not-a-number."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _attached(attachments: Mapping[str, bytes | str]) -> Iterator[str]:
    for name, content in attachments.items():
        if isinstance(content, bytes):
            text = base64.b64encode(content).decode()
            yield f'<script type="text/plain" id="{html.escape(name)}">{text}</script>\n'
        else:
            text = content.replace("<", "\\u003c")
            yield f'<script type="application/json" id="{html.escape(name)}">{text}</script>\n'


def _part(name: str) -> str:
    return resources.files("flowpolicy.report").joinpath(name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
