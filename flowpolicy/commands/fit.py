"""``flowpolicy fit RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.ranges import Count, Few, Seed


def run(argv: Sequence[str]) -> int:
    """Fit a solver to a trained policy."""
    return call(fit, argv, "fit")


def fit(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    nfe: Few = 4,
    what: Literal["olss", "boss"] = "olss",
    samples: Count = 512,
    seed: Seed = 0,
    out: Path | None = None,
) -> None:
    """Fit a solver to the field of a trained policy and write a run that uses it; the weights do not change.

    The new run holds the hash of the weights that the solver belongs to. It is evaluated like any other.

    Args:
        run: run folder.
        nfe: evaluations per chunk of the new policy.
        what: 'olss' fits every state as a combination of noise and velocities; 'boss' only the times of Euler's steps.
        samples: training observations, and trajectories, to fit on.
        seed: seeds observations and noise.
        out: run folder of the result; RUN-WHATNFE unless given.

    """
    from flowpolicy.core import checkpoint
    from flowpolicy.core.config import encode
    from flowpolicy.core.errors import ConfigError
    from flowpolicy.core.files import read_json, read_tensors, write_json, write_tensors, write_text
    from flowpolicy.core.seed import torch_generator
    from flowpolicy.core.spec import save_contract
    from flowpolicy.policy.fit import fitted
    from flowpolicy.train.kinds import KINDS
    from flowpolicy.train.run import Run

    fitted_to = Run.load(run)
    home, folder = fitted_to.path, fitted_to.checkpoint
    target = out or home.with_name(f"{home.name}-{what}{nfe}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already", fix="choose another --out folder")
    policy = fitted_to.policy()
    config, state = read_json(folder / "config.json"), read_json(folder / "state.json")
    observed = fitted_to.observations(samples, seed)
    evaluations = policy.flow.sampling.guidance.budget(nfe)
    better = fitted(policy, observed, evaluations, what, torch_generator(seed, "fit"))

    def write(place: Path) -> None:
        # The raw weights are the averaged ones here: the fit belongs to these alone.
        for name in ("weights", "ema"):
            write_tensors(place / f"{name}.safetensors", read_tensors(folder / "ema.safetensors"))
        write_tensors(place / "normalizer.safetensors", read_tensors(folder / "normalizer.safetensors"))
        write_json(place / "state.json", state)
        write_json(place / "config.json", {**config, "policy": encode(better.config, KINDS)})
        save_contract(place / "contract.json", better.contract)
        write_text(place / "card.md", f"# {what} for {nfe} evaluations, fitted to {run}\n")

    checkpoint.publish(target, state["step"], write)
    sys.stdout.write(f"fitted {what}, {nfe} evaluations per chunk: {target}\n")
