"""What goes to a hub with a run: its files, and the card that the page of a model shows."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import MissingExtraError
from flowpolicy.core.files import read_object
from flowpolicy.evaluate.records import identity, stored_records
from flowpolicy.evaluate.report import Evaluation, load_evaluation
from flowpolicy.evaluate.tables import microseconds, number, percent
from flowpolicy.evaluate.video import films_of
from flowpolicy.report.contract_words import contract_sentences
from flowpolicy.report.gathering import ReportedRun

_HUB_DATA = "hf://datasets/"


def files_to_share(folder: Path) -> list[str]:
    """Files of a run that speak of one checkpoint, as paths in the run folder: it, its records, films and card.

    Args:
        folder: checkpoint folder, verified.

    """
    home = checkpoint.run_of(folder)
    found = sorted(folder.iterdir())
    acting = identity(folder)
    for path, evaluation in stored_records(home).items():
        if acting.made(evaluation):
            found += [path, *films_of(home / "videos", path.stem).values()]
            found += films_of(home / "videos", path.stem, ".json").values()
    cards = sorted((home / "card").glob("nfe_*.json"))
    if cards and all(acting.made(load_evaluation(path)) for path in cards):
        found += [path for path in sorted((home / "card").iterdir()) if path.is_file() and path.suffix != ".lock"]
    found += [home / name for name in ("curves.png", "metrics.csv", "episodes.csv") if (home / name).is_file()]
    return [path.relative_to(home).as_posix() for path in dict.fromkeys(found)]


def model_card(folder: Path, repo: str, endpoint: str, licence: str = "") -> str:
    """The model card of a run: metadata for the hub's search, and what a person wants to know before they use it.

    Args:
        folder: checkpoint folder.
        repo: USER/NAME.
        endpoint: address of the hub.
        licence: its identifier, such as 'mit'; none is stated unless given.

    """
    home = checkpoint.run_of(folder)
    run, acting = ReportedRun(home, folder), identity(folder)
    contract, experiment = run.contract, run.experiment
    records = {path: one for path, one in stored_records(home).items() if acting.made(one)}
    usual = sorted(records.values(), key=lambda one: (bool(one.mismatch), one.noise_scale != 1, one.engine, one.nfe))
    assert contract is not None
    agent = str((experiment.get("agent") or {}).get("class", ""))
    env, data = contract.spec.env_id, str((experiment.get("data") or {}).get("path", ""))
    films = [path for record in records for path in films_of(home / "videos", record.stem).values()]
    about = _metadata(repo.rpartition("/")[2], agent, env, data, usual, licence)
    lines = ["---", about.strip(), "---", "", f"# {repo}", ""]
    lines += [f"A policy that was trained by flowpolicy{f' ({agent})' if agent else ''}.", ""]
    lines += ["## What it may be used for", "", *(f"- {line}" for line in contract_sentences(contract)), ""]
    lines += _results(usual)
    if films:
        lines += ["## Episodes", ""]
        for path in films[:_FILMS]:
            place = urllib.parse.quote(f"videos/{path.name}")
            lines.append(f'<video controls width="320" src="{endpoint}/{repo}/resolve/main/{place}"></video>')
        lines.append("")
    lines += ["## Use it", "", "```", *_usage(repo), "```", ""]
    lines += ["## Where it comes from", ""]
    state = read_object(folder / "state.json")
    seed = f", seed {experiment['seed']}" if "seed" in experiment else ""
    lines.append(f"- update {state['step']:,} of {experiment.get('steps', state['step']):,}{seed}")
    lines.append(f"- SHA-256 of the checkpoint's manifest: `{acting.sha256}`")
    if usual and usual[0].command:
        lines.append(f"- evaluated by `{usual[0].command}` at commit {usual[0].commit or 'unknown'}")
    lines += ["", "`flowpolicy-run.json` lists every file with its hash; `flowpolicy pull` verifies them.", ""]
    return "\n".join(lines)


_FILMS = 6
"""Films on the card; the others lie in videos/."""


def _usage(repo: str) -> Sequence[str]:
    return (
        "pip install 'flowpolicy[hub]'",
        f"flowpolicy eval hf://{repo} --episodes 100",
        f"flowpolicy pull {repo} --out {repo.rpartition('/')[2]}",
    )


def _results(records: Sequence[Evaluation]) -> list[str]:
    if not records:
        return ["## Results", "", "It was not evaluated before it was pushed.", ""]
    lines = [
        "## Results",
        "",
        "On planned initial states. Intervals are 95 %: Wilson's of the success rate, bootstrap of the return.",
        "",
        "| episodes | NFE | success | return | decision p50 / p99, us | acted |",
        "|---:|---:|---|---|---:|---|",
    ]
    for one in records:
        lines.append(
            f"| {len(one.episodes)} | {one.nfe} | {percent(one.success)} | {number(one.return_)} | "
            f"{microseconds(one.latency)} | {_way(one)} |"
        )
    return [*lines, ""]


def _way(one: Evaluation) -> str:
    said = [f"engine {one.engine}"] if one.engine else []
    said += [f"noise x {one.noise_scale:g}"] if one.noise_scale != 1 else []
    said += ["on pictures drawn otherwise than in training"] if one.mismatch else []
    said += [f"told '{one.instruction}'"] if one.instruction else []
    return ", ".join(said) or "as trained"


def _metadata(name: str, agent: str, env: str, dataset: str, records: Sequence[Evaluation], licence: str) -> str:
    """YAML by the hub's own library."""
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    results = []
    for one in records:
        args = {"episodes": len(one.episodes), "nfe": one.nfe, "confidence": 0.95, "plan": one.plan.digest[:12]}
        found = {"success_rate": one.success, "mean_return": one.return_}
        results += [
            EvalResult(
                task_type="robotics",
                task_name="robot learning",
                dataset_type=env,
                dataset_name=env,
                metric_type=metric,
                metric_value=round(interval.mean, 6),
                metric_name=f"{metric.replace('_', ' ')} [{interval.low:.4g}, {interval.high:.4g}], {_way(one)}",
                metric_args={**args, "low": round(interval.low, 6), "high": round(interval.high, 6)},
            )
            for metric, interval in found.items()
            if interval is not None
        ]
    said: dict[str, Any] = {
        "library_name": "flowpolicy",
        "pipeline_tag": "robotics",
        "tags": list(dict.fromkeys(tag for tag in ("robotics", "flow-matching", agent.replace("_", "-"), env) if tag)),
    }
    if dataset.startswith(_HUB_DATA):
        said["datasets"] = [dataset.removeprefix(_HUB_DATA).partition("@")[0]]
    if results:
        said |= {"model_name": name, "eval_results": results, "metrics": _metrics(records)}
    if licence:
        said["license"] = licence
    return str(ModelCardData(**said, ignore_metadata_errors=False).to_yaml())


def _metrics(records: Sequence[Evaluation]) -> list[str]:
    return [*(["success_rate"] if any(one.success for one in records) else []), "mean_return"]
