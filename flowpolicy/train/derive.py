"""What is made of a finished run: a solver that is fitted to its policy, and students of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flowpolicy.agents.students.distillation import student_of
from flowpolicy.agents.students.order import Order
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_json, write_json, write_text
from flowpolicy.core.seed import torch_generator
from flowpolicy.policy.fitted_solver import Method, fitted
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.run import Run

SAMPLES = 512
"""Training observations that something is fitted to."""


def fit_solver(
    run: Run,
    nfe: int,
    method: Method = "olss",
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    out: Path | None = None,
    device: str = "cpu",
) -> Run:
    """A run that acts by a solver fitted to the field of ``run``; the weights do not change.

    Args:
        run: of a flow policy.
        nfe: network evaluations per chunk of the new policy.
        method: what to fit, see :func:`flowpolicy.policy.fitted_solver.fitted`.
        samples: training observations, and trajectories, to fit on.
        seed: of observations and noise.
        out: run folder of the result; RUN-METHODNFE unless given.
        device: where to compute.

    Raises:
        ConfigError: the folder is there already, or the policy is none that a solver can be fitted to.

    """
    target = out or run.path.with_name(f"{run.path.name}-{method}{nfe}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already", fix="choose another --out folder")
    policy = run.policy(device=device)
    evaluations = policy.flow.sampling.guidance.budget(nfe)
    seen = {name: value.to(device) for name, value in run.observations(samples, seed).items()}
    better = fitted(policy, seen, evaluations, method, torch_generator(seed, "fit", device=device))
    state = read_json(run.checkpoint / "state.json")

    def describe(folder: Path) -> None:
        write_json(folder / "state.json", state)
        write_text(folder / "card.md", f"# {method} for {nfe} evaluations, fitted to {run.path}\n")

    # Raw weights and averaged ones are the same here: the fit belongs to those that act.
    config = read_json(run.checkpoint / "config.json")
    return Run.load(better.save(target, step=state["step"], config=config, also=describe))


def student(run: Run, method: str, order: Order, *, steps: int, seed: int = 0, device: str | None = None) -> Experiment:
    """The experiment that trains a student of the policy of ``run``.

    Args:
        run: of the teacher.
        method: a name in :data:`flowpolicy.agents.students.distillation.METHODS`.
        order: what is asked of the student.
        steps: gradient updates.
        seed: of weights, batches and noise.
        device: where it is trained; where the teacher was unless given.

    Raises:
        ConfigError: the teacher does not fit the method, or the order does not.
        DataError: the training file is not there, or has another content.

    """
    run.data()
    agent, _ = student_of(run.checkpoint, run.experiment.agent, method, order, lambda: run.observations(SAMPLES, seed))
    place = run.experiment.device if device is None else device
    return dataclasses.replace(run.experiment, agent=agent, steps=steps, seed=seed, device=place, compile="auto")
