"""What a report is about, small and made up: a run folder with records, curves, films and traces."""

import dataclasses
import json
import re

import numpy as np

from flowpolicy.core.files import write_json
from flowpolicy.core.spec import ActionSpec, Contract, ImageSpec, ObservationSpec, Spec, save_contract
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.records import record_path
from flowpolicy.evaluate.report import make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import Episode
from flowpolicy.evaluate.traces import Trace
from flowpolicy.evaluate.video import save_videos

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>&amp;'"
"""A name that would run if any of it reached the page as markup."""
SPEC = Spec(
    observation={"state": ObservationSpec((3,), f"m {HOSTILE}"), "eye_image": ImageSpec((16, 24, 3), camera="eye")},
    action=ActionSpec(2, "delta", "world", "0.1 m per unit", rate_hz=10.0),
    env_id="test/Point",
    horizon=30,
    success="within 0.05 m of the goal",
)


def played(index, seed, success, *, filmed=False, steps=12):
    """An episode; with frames and a trace where it is filmed."""
    stream = np.random.default_rng(index)
    frames, trace = (), None
    if filmed:
        frames = tuple(np.full((32, 48, 3), 15 * k, np.uint8) for k in range(steps + 1))
        state = stream.normal(size=(steps, 3)).cumsum(0)
        state[3, 1] = np.nan
        trace = Trace(stream.normal(size=(steps, 2)), {"state": state}, np.zeros(steps), tuple(range(0, steps, 4)))
    counts = (steps if success else None, float(success), steps, 3, 3)
    return Episode(index, seed, *counts, tuple(stream.uniform(1e-3, 2e-3, 3)), frames=frames, trace=trace)


def make_run(folder, *, episodes=40, films=4, rate=0.7, steps=100, nfes=(1,), seed=0):
    """A run folder as `train` and `eval --video` leave it, without weights."""
    checkpoint = folder / "checkpoints" / f"step_{steps:08d}"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints" / "LATEST").write_text(checkpoint.name)
    experiment = {"agent": {"class": "dm1", "chunk": 8}, "batch_size": 8, "seed": seed, "data": {"path": "gone.hdf5"}}
    write_json(checkpoint / "config.json", {"experiment": experiment})
    write_json(checkpoint / "state.json", {"step": steps})
    save_contract(checkpoint / "contract.json", Contract(SPEC, 1, 8, 4, 1, dataset_id=HOSTILE, dataset_sha256="d" * 64))
    write_json(checkpoint / "manifest.json", {})
    rows = [f"{k},{np.exp(-k / 40) + 0.01:.4f},{k * 1e-5:.6f}" for k in range(1, 101)]
    (folder / "metrics.csv").write_text("step,loss,lr\n" + "\n".join(rows) + "\n")
    plan = make_plan("test/Point", episodes, 0)
    wins = np.random.default_rng(seed).random(episodes) < rate
    for nfe in nfes:
        outcomes = [
            dataclasses.replace(played(i, s, bool(won), filmed=k < films and nfe == nfes[0]), evaluations=3 * nfe)
            for k, (i, s, won) in enumerate(zip(plan.indices, plan.policy_seeds, wins, strict=True))
        ]
        about = {
            "training": {"experiment": experiment, "dataset_sha256": "d" * 64, "seconds": 60.0, "parameters": 1000}
        }
        made = make_evaluation(plan, outcomes, run=str(folder), step=steps, command=f"eval {HOSTILE}", **about)
        save_evaluation(record_path(folder, made), made)
        if films and nfe == nfes[0]:
            save_videos(folder / "videos", record_path(folder, made).stem, outcomes[:films], 10.0)
    return folder


def facts_of(page):
    """The facts of a page, as its script reads them, and the names of what is attached to it."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1]), re.findall(r'<script type="[\w/]+" id="((?:film|trace)-\d+)">', text)


def section(facts, name):
    """A section of a page, or None."""
    return next((one for one in facts["sections"] if one["id"] == name), None)
