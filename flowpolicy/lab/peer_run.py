"""The code of others on our data and under our plan: trained and played in a process of its own, in its own Python.

The user names a checkout; nothing of it is part of flowpolicy. It gets the transitions that our agent would draw from,
and our options by its names; it decides one observation at a time, over a pipe, in our rollout. What comes of it is a
record like any other, whose ``training`` holds ``peer``: name, commit, versions.

::

    RUN/peer/peer.json          what was asked for, by the peer's names
    RUN/peer/contract.json
    RUN/peer/transitions.npz    while it trains
    RUN/peer/parameters.npz     once it has trained
    RUN/peer/trained.json       what it took
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowpolicy.agents.offline.peer_options import fisher_options, fql_options
from flowpolicy.core import keys
from flowpolicy.core.config import encode
from flowpolicy.core.errors import ConfigError, TrainingError, nearest
from flowpolicy.core.files import (
    read_object,
    replacing,
    require_free,
    require_program,
    require_writable,
    sha256,
    write_json,
)
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.spec import Contract, load_contract, save_contract
from flowpolicy.envs import find_env, normalized_score
from flowpolicy.evaluate.evaluation import counting
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.report import Evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.train.experiment import Experiment, transition_sampler
from flowpolicy.train.kinds import KINDS
from flowpolicy.train.start import find_start

PROGRAM = Path(__file__).with_name("peer_program.py")
PACKAGES = Path(__file__).with_name("peer-requirements.txt")
"""What a Python needs to run the peers; tested in these versions, on a CPU."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A public implementation of one of our agents."""

    repository: str
    module: str
    """Of the checkout, with the agent and ``get_config``."""
    agent: str
    """Its class."""
    options: Callable[[Any], dict[str, Any]]
    """Config of our agent -> options by the peer's names."""


PEERS = {
    "fql": Peer("github.com/seohongpark/fql", "agents.fql", "FQLAgent", fql_options),
    "fisher": Peer("github.com/ARC0127/Fisher-Decorator", "agents.fidec", "FiDecAgent", fisher_options),
}


@dataclasses.dataclass(frozen=True)
class Checkout:
    """A peer, where its code lies, and the Python that runs it."""

    name: str
    path: Path
    python: str

    @property
    def peer(self) -> Peer:
        """What is known of it."""
        return PEERS[self.name]

    @property
    def file(self) -> Path:
        """The agent's file."""
        return self.path / f"{self.peer.module.replace('.', '/')}.py"

    def commit(self) -> str:
        """Git commit, '-dirty' where files were changed; empty where the folder is no repository of its own."""
        if not (self.path / ".git").exists():
            return ""
        words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(words, cwd=self.path, capture_output=True, text=True)
        return done.stdout.strip()


def find_checkout(text: str, python: str = "") -> Checkout:
    """What ``--peer NAME=PATH`` and ``--peer-python`` mean.

    Raises:
        ConfigError: no such peer, its code is not there, or the Python is none.

    """
    name, given, path = text.partition("=")
    if not given or not path:
        raise ConfigError(f"--peer '{text}'", expected=f"NAME=PATH, with a NAME among {', '.join(PEERS)}")
    if name not in PEERS:
        raise ConfigError(f"--peer '{text}': no peer is called '{name}'", expected=nearest(name, PEERS))
    # The process works in the peer's folder, from which a relative path would mean something else. Links stay: what one
    # in an environment leads to is another Python.
    program = str(Path(there).absolute()) if (there := shutil.which(python or sys.executable)) else python
    found = Checkout(name, Path(path).expanduser().absolute(), program)
    if not found.file.is_file() or not (found.path / "utils" / "datasets.py").is_file():
        raise ConfigError(
            f"--peer {text}: no {found.file.relative_to(found.path)} and utils/datasets.py there",
            expected=f"a checkout of {found.peer.repository}",
            fix=f"git clone https://{found.peer.repository} {shlex.quote(path)}",
        )
    require_program(found.python, "--peer-python")
    return found


def train_peer(checkout: Checkout, experiment: Experiment, run: Path, *, progress: bool = True) -> None:
    """Train a peer where our agent would be trained; what has been trained already is left as it is.

    Args:
        checkout: whose code.
        experiment: what our side would do: data, agent, updates, rows, seed, threads.
        run: run folder.
        progress: show a bar.

    Raises:
        ConfigError: the peer cannot do the same, its Python lacks packages, or the folder holds another training.
        TrainingError: it stopped before the end.

    """
    require_writable(run)
    asked, home = _asked(checkout, experiment), run.absolute() / "peer"  # the peer works in its own folder
    if (home / "trained.json").exists():
        if _same(read_object(home / "peer.json")) != _same(asked):
            raise ConfigError(f"{run} holds a peer that was trained otherwise", fix="choose another --out")
        return
    if home.exists() and not (home / "peer.json").exists() and any(home.iterdir()):
        raise ConfigError(f"{home} holds other files", fix="choose another --out")
    start = find_start(experiment, run, None, None, None)
    contract, columns = start.contract, _transitions(start)
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "peer.json", asked)
    save_contract(home / "contract.json", contract)
    transitions = home / "transitions.npz"
    np.savez(transitions, **columns)
    began = time.perf_counter()
    try:
        with (
            replacing(home / "parameters.npz") as parameters,
            _started(checkout, home, asked | _sizes(contract) | {"parameters": str(parameters)}, "train") as process,
            progress_bar(f"train {run}", experiment.steps, shown=progress) as move,
        ):
            told = _answer(checkout, process, "done", lambda step: move(step, checkout.name))
    finally:
        transitions.unlink(missing_ok=True)
    write_json(home / "trained.json", {**told, "seconds": time.perf_counter() - began})


def evaluate_peer(run: Path, *, episodes: int, seed: int, also: Path | None = None, command: str = "") -> Evaluation:
    """Play a trained peer on an evaluation plan, and write the record to RUN/peer/record.json.

    Args:
        run: run folder of :func:`train_peer`.
        episodes: number of planned initial states.
        seed: of the plan.
        also: another file for the record.
        command: command line that asked.

    Returns:
        The evaluation. Its decision times hold the way to the other process and back.

    """
    torch.set_num_threads(1)
    home = run.absolute() / "peer"
    if not (home / "trained.json").exists():
        raise ConfigError(f"{run} holds no trained peer", fix="flowpolicy peer train PRESET --peer NAME=PATH --out RUN")
    asked, told, contract = read_object(home / "peer.json"), read_object(home / "trained.json"), _contract(home)
    checkout = find_checkout(f"{asked['peer']}={asked['path']}", asked["python"])
    parameters = home / "parameters.npz"
    if also is not None:
        require_free(also)
    plan = make_plan(contract.spec.env_id, episodes, seed)
    env = find_env(contract.spec.env_id).make(len(os.sched_getaffinity(0)))
    settings = asked | _sizes(contract) | {"parameters": str(parameters)}
    try:
        with (
            _started(checkout, home, settings, "act") as process,
            counting(run, plan, env.spec.defines_success) as count,
        ):
            _answer(checkout, process, "ready")
            outcomes = rollout(PeerPolicy(checkout, process, contract), env, plan, progress=count)
    finally:
        env.close()
    peer = {name: asked[name] for name in ("peer", "repository", "commit", "file_sha256", "config")}
    evaluation = make_evaluation(
        plan,
        outcomes,
        run=str(run),
        step=asked["steps"],
        checkpoint_sha256=sha256(parameters),
        weights_sha256=sha256(parameters),
        command=command,
        training={
            "experiment": asked["experiment"],
            "dataset_sha256": contract.dataset_sha256,
            "seconds": told["seconds"],
            "peer": {**peer, "versions": told["versions"], "process_seconds": told["process_seconds"]},
        },
        success_defined=contract.spec.defines_success,
        normalized_score=normalized_score(contract.spec.env_id),
    )
    for place in (home / "record.json", also):
        if place is not None:
            save_evaluation(place, evaluation)
    return evaluation


class PeerPolicy:
    """A peer as a rollout asks for decisions: one observation at a time, its noise from a seed that the plan gives.

    Args:
        checkout: whose code.
        process: of the peer, ready to act.
        contract: what it was trained for.

    """

    def __init__(self, checkout: Checkout, process: subprocess.Popen[bytes], contract: Contract) -> None:
        self.contract, self.evaluations = contract, 0
        self._checkout, self._process = checkout, process

    def act(self, obs: dict[str, torch.Tensor], generator: torch.Generator, nfe: int | None = None) -> torch.Tensor:
        """(1, 1, a) for name -> (1, 1, d); evaluations of its networks are as its method says, not counted."""
        told, answers = _pipes(self._process)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        row = np.concatenate([obs[name].numpy().ravel() for name in self.contract.spec.observation])
        size = 4 * self.contract.spec.action.size
        try:
            told.write(seed.to_bytes(8, "little") + row.astype(np.float32).tobytes())
            told.flush()
        except BrokenPipeError:
            pass  # it has ended: told below
        frame = answers.read(size)
        if len(frame) != size:
            raise _stopped(self._checkout, self._process)
        self.evaluations += self.contract.nfe
        return torch.from_numpy(np.frombuffer(frame, np.float32).copy()).view(1, 1, -1)


def _asked(checkout: Checkout, experiment: Experiment) -> dict[str, Any]:
    """What the peer is to do, by its names."""
    agent, scaling = experiment.agent, experiment.normalizer
    config = checkout.peer.options(agent)
    if (scaling.obs, scaling.action, scaling.per_key) != ("none", "none", {}) or experiment.device != "cpu":
        raise ConfigError(
            "the peer scales neither observations nor actions, and runs on the CPU",
            fix="--normalizer.obs none --normalizer.action none --device cpu",
        )
    return {
        "peer": checkout.name,
        "path": str(checkout.path),
        "python": checkout.python,
        "repository": checkout.peer.repository,
        "commit": checkout.commit(),
        "file_sha256": sha256(checkout.file),
        "module": checkout.peer.module,
        "agent": checkout.peer.agent,
        "config": config,
        "seed": experiment.seed,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "threads": experiment.threads,
        "experiment": encode(experiment, KINDS),
    }


def _same(asked: dict[str, Any]) -> dict[str, Any]:
    """What decides the parameters: neither where code and data lie, nor what runs them."""
    names = ("peer", "file_sha256", "config", "seed", "steps", "batch_size")
    return json.loads(json.dumps({name: asked[name] for name in names}))


def _sizes(contract: Contract) -> dict[str, int]:
    streams = contract.spec.observation.values()
    return {"observations": sum(int(np.prod(each.shape)) for each in streams), "actions": contract.spec.action.size}


def _contract(home: Path) -> Contract:
    return load_contract(home / "contract.json")


def _transitions(start: Any) -> dict[str, np.ndarray]:
    """(N, .) columns by the peers' names: every row that our sampler draws, and what follows it."""
    if start.contract.spec.images:
        raise ConfigError("the peer sees states alone", fix="--data.obs-keys KEY ...")
    sampler = transition_sampler(start.experiment, start.dataset, 1)
    rows = sampler.drawable
    batch = sampler.at(rows)
    names = list(start.contract.spec.observation)
    columns = {
        "observations": torch.cat([batch[keys.OBS][name].flatten(1) for name in names], 1),
        "next_observations": torch.cat([batch[keys.NEXT_OBS][name].flatten(1) for name in names], 1),
        "actions": batch[keys.ACTION].flatten(1),
        "rewards": batch[keys.REWARD].flatten(),
        "masks": batch[keys.MASK].flatten(),
        "terminals": torch.cat([(rows[1:] != rows[:-1] + 1), torch.ones(1, dtype=torch.bool)]),
    }
    return {name: column.numpy().astype(np.float32) for name, column in columns.items()}


@contextmanager
def _started(checkout: Checkout, home: Path, settings: dict[str, Any], what: str) -> Iterator[subprocess.Popen[bytes]]:
    """The peer's process; ended when left."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        environment.pop(name, None)
    file = home / f"{what}.json"
    write_json(file, settings | {"transitions": str(home / "transitions.npz")})
    process = subprocess.Popen(
        [checkout.python, str(PROGRAM), str(file), what],
        cwd=checkout.path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in _pipes(process):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        file.unlink(missing_ok=True)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[Any, Any]:
    return process.stdin, process.stdout


def _answer(
    checkout: Checkout,
    process: subprocess.Popen[bytes],
    wanted: str,
    report: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """What the peer says with the word ``wanted``."""
    step = 0
    for line in _pipes(process)[1]:
        word, _, value = line.decode().partition(" ")
        if word == wanted:
            found: dict[str, Any] = json.loads(value)
            return found
        if word == "at":
            step = json.loads(value)
            report(step)
        elif word == "lacks":
            raise ConfigError(
                f"the peer {checkout.name} cannot be imported in {checkout.python}: {json.loads(value)}",
                expected="--peer-python PYTHON with the packages that it imports",
                fix=f"python -m venv VENV && VENV/bin/pip install -r {PACKAGES}, then --peer-python VENV/bin/python",
            )
    raise _stopped(checkout, process, f" after {step:,} updates" if step else "")


def _stopped(checkout: Checkout, process: subprocess.Popen[bytes], when: str = "") -> TrainingError:
    return TrainingError(
        f"the peer {checkout.name} in {checkout.path} stopped with exit code {process.wait()}{when}; "
        "its own message is above",
        fix="mend what it says; the same command begins anew",
    )
