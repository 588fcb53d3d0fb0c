"""Tables for the terminal: one evaluation, two compared, several side by side."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from flowpolicy.core.spec import SIMULATORS, UNSTATED
from flowpolicy.evaluate.figures import Measured
from flowpolicy.evaluate.report import Evaluation, Latency
from flowpolicy.evaluate.statistics import Comparison, Interval

Methods = Mapping[str, Evaluation]
"""Name of a method -> its outcomes on the common plan."""


def percent(interval: Interval | None) -> str:
    """A rate in percent with its interval, e.g. '95.0 % [88.8, 97.8]'; 'not defined' where there is none."""
    if interval is None:
        return "not defined"
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def number(interval: Interval) -> str:
    """A mean with its interval, e.g. '812 [640, 977]'."""
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def score(measured: Measured) -> str:
    """What counts: success in percent or, where it is not defined, the return."""
    return number(measured.return_) if measured.success is None else percent(measured.success)


def microseconds(latency: Latency | None) -> str:
    """Median and 99th percentile, e.g. '310 / 480'; a dash where nothing was measured."""
    return f"{latency.p50_us:.0f} / {latency.p99_us:.0f}" if latency else "-"


def evaluation_table(evaluation: Evaluation) -> Table:
    """One evaluation, a line per quantity."""
    table = Table(title=f"{evaluation.run} at step {evaluation.step}, {evaluation.plan.env_id}", show_header=False)
    table.add_row("episodes", str(len(evaluation.episodes)))
    if evaluation.success:
        table.add_row("success, Wilson 95 %", percent(evaluation.success))
    table.add_row("return, bootstrap 95 %", number(evaluation.return_))
    if evaluation.normalized:
        table.add_row("normalised score, bootstrap 95 %", number(evaluation.normalized))
    table.add_row("network evaluations per chunk", str(evaluation.nfe))
    if evaluation.noise_scale != 1:
        table.add_row("scale of the initial noise", f"{evaluation.noise_scale:g}")
    if evaluation.instruction:
        table.add_row("instruction", evaluation.instruction)
    table.add_row("decision latency p50 / p99, us", microseconds(evaluation.latency))
    if evaluation.simulation:
        table.add_row("control step of the simulator", evaluation.simulation)
    table.add_row("plan", evaluation.plan.digest[:12])
    table.add_row("checkpoint", evaluation.checkpoint_sha256[:12] or "-")
    return table


def comparison_table(a: Evaluation, b: Evaluation, comparison: Comparison) -> Table:
    """Two evaluations on one plan, their paired difference, and the verdict in words."""
    title = f"A = {a.run} at step {a.step}, B = {b.run} at step {b.step}\n"
    title += f"{a.plan.env_id}, the {len(a.episodes)} episodes of plan {a.plan.digest[:12]}"
    decided = verdict(comparison) if a.success else verdict_by_return(comparison)
    caption = "\n".join([decided, *unlike(a, b)])
    table = Table("", "A", "B", "A - B, paired 95 %", title=title, caption=caption)
    table.add_row("checkpoint, step", str(a.step), str(b.step), "")
    points, scored = comparison.difference, a.success is not None
    if scored:
        difference = f"{100 * points.mean:+.1f} points [{100 * points.low:+.1f}, {100 * points.high:+.1f}]"
        table.add_row("success", percent(a.success), percent(b.success), difference)
    table.add_row("return", number(a.return_), number(b.return_), number(comparison.return_difference))
    if scored:
        table.add_row("succeeded alone", str(comparison.only_a), str(comparison.only_b), "")
    if a.normalized and b.normalized:
        table.add_row("normalised score", number(a.normalized), number(b.normalized), "")
    table.add_row("NFE", str(a.nfe), str(b.nfe), "")
    if a.noise_scale != b.noise_scale:
        table.add_row("scale of the initial noise", f"{a.noise_scale:g}", f"{b.noise_scale:g}", "")
    table.add_row("latency p50 / p99, us", microseconds(a.latency), microseconds(b.latency), "")
    return table


def unlike(a: Evaluation, b: Evaluation) -> list[str]:
    """What besides the policies is not the same in two evaluations on one plan, a sentence each."""
    found = []
    if a.noise_scale != b.noise_scale:
        found.append(f"Not the same protocol: initial noise times {a.noise_scale:g} and {b.noise_scale:g}.")
    if a.instruction != b.instruction:
        told = [f"'{each}'" if each else "nothing" for each in (a.instruction, b.instruction)]
        found.append(f"Not the same instruction: {told[0]} and {told[1]}.")
    # The environment ran in both: what was absent in one did not simulate it.
    both = [name for name in SIMULATORS if name in a.versions and name in b.versions]
    if libraries := [name for name in both if a.versions[name] != b.versions[name]]:
        named = (f"{name} {a.versions[name]} and {b.versions[name]}" for name in libraries)
        found.append(f"Not the same simulator: {', '.join(named)}.")
    steps = [evaluation.simulation or "robosuite's own step" for evaluation in (a, b)]  # as older records do not say
    if steps[0] != steps[1]:
        found.append(f"Not the same control step of the simulator: {steps[0]} and {steps[1]}.")
    data = [evaluation.training.get("dataset_sha256", UNSTATED)[:12] for evaluation in (a, b)]
    if data[0] != data[1]:
        found.append(f"Not trained on the same data: files {data[0]} and {data[1]}.")
    return found


def verdict(comparison: Comparison) -> str:
    """Whether the difference of success is resolved, in words."""
    evidence = f"exact McNemar p = {comparison.p_value:.3g} over {comparison.n} pairs"
    if not comparison.resolved:
        excluded = comparison.difference.low > 0 or comparison.difference.high < 0
        hair = " The interval leaves out zero by a hair; the exact test, which decides, does not." if excluded else ""
        return f"Not resolved: these episodes do not tell A and B apart ({evidence}).{hair}"
    better = "A" if comparison.difference.mean > 0 else "B"
    return f"Resolved: {better} succeeds more often ({evidence})."


def verdict_by_return(comparison: Comparison) -> str:
    """Whether the difference of the return is resolved, in words: for tasks that define no success."""
    difference = comparison.return_difference
    evidence = f"paired bootstrap over {comparison.n} episodes; this task defines no success"
    if difference.low <= 0 <= difference.high:
        return f"Not resolved: these episodes do not tell A and B apart ({evidence})."
    return f"Resolved: the return of {'A' if difference.mean > 0 else 'B'} is higher ({evidence})."


def methods_table(methods: Methods, title: str) -> Table:
    """Several methods side by side, a row per method."""
    table = Table("method", title=title)
    for header in (
        "step",
        "NFE",
        "success [Wilson 95 %]",
        "return [95 %]",
        "latency p50 / p99, us",
        "training",
        "parameters",
    ):
        table.add_column(header, justify="right")
    for name, evaluation in methods.items():
        training = evaluation.training
        minutes, seconds = divmod(round(training["seconds"]), 60)
        table.add_row(
            name,
            str(evaluation.step),
            str(evaluation.nfe),
            percent(evaluation.success),
            number(evaluation.return_),
            microseconds(evaluation.latency),
            f"{minutes} min {seconds:02d} s",
            f"{training['parameters']:,}",
        )
    return table
