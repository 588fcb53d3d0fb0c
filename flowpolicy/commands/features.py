"""``flowpolicy features RUN``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.console import console
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.ranges import Count, Seed


def run(argv: Sequence[str]) -> int:
    """Say how far the features of a run are from collapse."""
    return call(features, argv, "features")


def features(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    data: Annotated[Path | None, tyro.conf.arg(name="data.path")] = None,
    filter_key: Annotated[str, tyro.conf.arg(name="data.filter-key")] = "",
    rows: Count = 2048,
    seed: Seed = 0,
    thing: Annotated[str, tyro.conf.arg(name="object")] = "",
    hand: str = "",
    json: Path | None = None,
    figure: Path | None = None,
    overwrite: bool = False,
) -> None:
    """How far what a policy sees is from collapse, and what of the scene is left in it: per camera and of the trunk.

    Ranks, cosines and uniformity say how features are spread, which noise is too. What they are good for say the
    signal over augmentation (distance of two rows over that of two random windows of one picture), a linear probe of
    the object's position, judged on episodes that it was not fitted to, and confusable pairs: the share of pairs with
    the object 10 mm apart or more and the hand within 5 mm that look as alike as successive observations do.

    Args:
        run: run folder (its newest checkpoint) or checkpoint folder, of a policy that sees pictures.
        data: file with the cameras of the run; the file that it was trained on unless given.
        filter_key: filter key that selects episodes of it, such as 'valid'; all of them unless given.
        rows: observations, drawn without replacement.
        seed: of the rows and of the random windows.
        thing: observation of the file that begins with the position of the object in metres; 'object' unless given.
            Where the file has none, probe and confusable pairs are left out.
        hand: observation that begins with the position of the hand in metres; 'robot0_eef_pos' unless given.
        json: where to write the figures.
        figure: where to draw spectra, cosines and the probe's errors, a PNG.
        overwrite: replace existing files at --json and --figure.

    """
    from flowpolicy.core.files import require_free, write_json
    from flowpolicy.core.spec import library_versions
    from flowpolicy.evaluate.features_of_run import features_of
    from flowpolicy.evaluate.report import git_commit
    from flowpolicy.evaluate.representation_report import draw_features, features_table, figures_json
    from flowpolicy.train.run import Run

    for path in (json, figure):
        if path is not None:
            require_free(path, overwrite)
    loaded = Run.load(run)
    source = loaded.data() if data is None else dataclasses.replace(loaded.experiment.data, path=str(data))
    if filter_key:
        source = dataclasses.replace(source, filter_key=filter_key)
    with progress_bar(f"features {run}", rows) as move:
        found = features_of(loaded.policy(), source, rows, seed, thing, hand, progress=move)
    measured = found.figures()
    title = f"{loaded.path} at step {loaded.step}, {rows:,} rows of {source.path}"
    console().print(features_table(measured, title, found))
    if json is not None:
        identity = loaded.identity
        about = {"run": str(loaded.path), "step": identity.step, "checkpoint_sha256": identity.sha256}
        about |= {"command": typed(), "commit": git_commit(), "versions": library_versions()}
        write_json(json, figures_json(measured, found, seed) | about)
    if figure is not None:
        draw_features(found, measured, title, figure)
        sys.stdout.write(f"picture {figure}\n")
