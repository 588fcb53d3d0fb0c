"""Print what the doctor found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from flowpolicy.core.spec import UNSTATED, ImageSpec
from flowpolicy.data.dataset_checks import Description, Finding

_STYLE = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
_LISTED = 8


def print_description(description: Description, console: Console) -> None:
    """Print the facts about a file as a table."""
    print_rows(str(description.path), description_rows(description), console)


def print_rows(title: str, rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Print names and values as a table."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print one line per check: level, what it means, what to do."""
    table = Table()
    for title in ("check", "result", "finding", "what to do"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        level = f"[{_STYLE[finding.level]}]{finding.level}[/]"
        table.add_row(finding.check, level, finding.message.replace("[", r"\["), finding.advice)
    console.print(table)


def description_rows(description: Description) -> list[tuple[str, str]]:
    """The facts about a file, name and value, in the order in which they are shown."""
    shortest, median, longest = description.lengths
    rate = description.action.rate_hz
    rows = [
        ("format", description.format),
        ("episodes", str(description.episodes)),
        ("steps", f"{description.steps} (per episode: min {shortest}, median {median}, max {longest})"),
        ("environment", f"{description.env_id}, version {description.env_version}"),
        *(
            (name, said)
            for name, said in (("robot", description.robot), ("tool", description.tool))
            if said != UNSTATED
        ),
        ("rate", f"{rate:g} Hz" if rate else UNSTATED),
        ("action", f"{description.action.size} dimensions, {_range(*description.action_range)}"),
    ]
    convention = {k: v for k, v in dataclasses.asdict(description.action).items() if k not in ("size", "rate_hz")}
    rows += [(f"  {name}", f"{value:g}" if isinstance(value, float) else value) for name, value in convention.items()]
    for name, (shape, low, high) in description.observations.items():
        rows.append((f"obs {name}", f"{shape}, {_range(low, high)}"))
    rows += [(f"pictures {key}", _seen(image)) for key, image in description.pictures.items()]
    success = "not defined in this format" if description.success is None else f"{description.success:.1%} of episodes"
    filters = ", ".join(f"{name} ({count})" for name, count in description.filters.items())
    return [
        *rows,
        ("rewards", _values(description.rewards)),
        ("success", success),
        ("filter keys", filters or "none"),
        *([("instructions", _texts(description.instructions))] if description.instructions else []),
        *((f"not read: {name}", why) for name, why in description.unread.items()),
        *(("mind", f"the file {remark}") for remark in description.remarks),
        *([("where it comes from", description.provenance)] if description.provenance else []),
        ("size", f"{description.size / 1e6:.1f} MB"),
        ("sha256", description.sha256),
    ]


def _texts(texts: Sequence[str]) -> str:
    listed = ", ".join(f"'{text}'" for text in texts[:_LISTED])
    return f"{len(texts)}: {listed}" + (", ..." if len(texts) > _LISTED else "")


def _seen(image: ImageSpec) -> str:
    """Size, camera and renderer of pictures, as far as the file says."""
    said = [f"{image.height} x {image.width}"]
    said += [f"camera {image.camera}"] if image.camera != UNSTATED else []
    said += [f"fixed to {image.mount}"] if image.mount != UNSTATED else []
    said += [f"{image.fov_deg:g} degrees"] if image.fov_deg else []
    if (render := image.render) is not None:
        version = "" if render.version == UNSTATED else f" {render.version}"
        said.append(
            f"drawn by {render.library}{version}: {render.geoms or 'unknown'} geoms, MSAA "
            f"{render.msaa if render.msaa >= 0 else 'unknown'}, reflections {render.reflections or 'unknown'}"
        )
    return ", ".join(said)


def _range(low: float, high: float) -> str:
    return f"from {low:.4g} to {high:.4g}"


def _values(values: Sequence[float]) -> str:
    if len(values) <= _LISTED:
        return ", ".join(f"{value:g}" for value in values)
    return f"{len(values)} distinct values, {_range(values[0], values[-1])}"
