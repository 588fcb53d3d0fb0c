"""Where the scores of a group file come from: a critic, the simulator, or the returns in the data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowpolicy.agents.base.value_learning import ValueAgent
from flowpolicy.agents.groups.candidates import (
    Candidates,
    choose_states,
    neighbour_candidates,
    policy_candidates,
    returns_to_go,
    simulator_scores,
    state_calls,
)
from flowpolicy.agents.groups.group_file import Groups
from flowpolicy.agents.groups.judges import Judge, critic_judges, fit_judge
from flowpolicy.agents.groups.making import Making
from flowpolicy.core import keys
from flowpolicy.core.checkpoint import MANIFEST, fingerprint, resolve
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_json, read_tensors
from flowpolicy.core.journal import Journal
from flowpolicy.core.spec import Contract
from flowpolicy.data.dataset import Dataset, load_dataset
from flowpolicy.data.normalize import Normalizer
from flowpolicy.envs import find_env
from flowpolicy.envs.labelling import CandidateRunner, require_restorable
from flowpolicy.envs.worker import in_order
from flowpolicy.policy import Policy
from flowpolicy.train.post_training import require_flow
from flowpolicy.train.run import Run


@dataclasses.dataclass(frozen=True)
class Request:
    """What all sources start from."""

    asked: Making
    """What is scored, and how."""
    folder: Path
    """Checkpoint of the base."""
    base: Policy
    dataset: Dataset
    rows: Tensor
    held_out: Tensor
    """(n,) bool: states that judge."""
    apart: Tensor
    """(episodes,) bool: the episodes that they come from, and nothing else does."""

    def candidate_chunks(self) -> Candidates:
        """The data's chunk and samples of the base."""
        base, dataset, asked = self.base, self.dataset, self.asked
        return policy_candidates(
            base, dataset, self.rows, asked.candidates, asked.seed, asked.nfe, asked.candidate_noise
        )

    def provenance(self, **facts: Any) -> dict[str, Any]:
        """What the candidates, and with the ``facts`` of a source their scores, depend on."""
        asked = self.asked
        return {
            "source": asked.source,
            "env_id": self.base.contract.spec.env_id,
            "base": str(self.folder),
            "base_sha256": fingerprint(self.folder),
            "dataset": self.dataset.path.name,
            "dataset_sha256": self.dataset.sha256,
            "span": list(asked.span),
            "seed": asked.seed,
            "nfe": self.base.contract.nfe if asked.nfe is None else asked.nfe,
            "candidate_noise": list(asked.candidate_noise),
            "versions": self.base.contract.versions,
            **facts,
        }

    def groups(self, found: Candidates, score: Tensor, judges: dict[str, Judge], **facts: Any) -> Groups:
        """Scored candidates with their provenance."""
        stored = {name: judge.store() for name, judge in judges.items()}
        provenance = self.provenance(**facts)
        return Groups(found.obs, found.action, found.valid, score, found.row, self.held_out, provenance, stored)

    def fitted(self, found: Candidates, score: Tensor) -> dict[str, Judge]:
        """Judges fitted to the scores: one where the policy is trained, one on the states held out."""
        judges, asked = {}, self.asked
        for name, part in (("train", ~self.held_out), ("held_out", self.held_out)):
            obs = {key: value[part] for key, value in found.obs.items()}
            judges[name] = fit_judge(
                obs, found.action[part], score[part], self.base.normalizer, caution=asked.caution, seed=asked.seed
            )
        return judges


def make_groups(run: Path, asked: Making, progress: Callable[[int], None] = lambda done: None) -> Groups:
    """Candidates of the policy in ``run`` with scores; ``progress`` is told how many states are done.

    Raises:
        ConfigError: the policy cannot be post-trained, or source and options do not fit it.
        DataError: the dataset has no such states.

    """
    request = open_request(run, asked)
    if asked.source == "simulator":
        return _by_simulator(request, progress)
    return _by_critic(request) if asked.source == "critic" else _by_returns(request)


def open_request(run: Path, asked: Making) -> Request:
    """Load the base and the dataset, and choose the states."""
    torch.set_num_threads(1)
    stored = Run.load(run)
    base = stored.policy(device=asked.device)
    require_flow(base.config, str(run))
    if images := base.contract.spec.images:
        raise ConfigError(
            f"{run} sees pictures ({', '.join(images)}), and a file of groups holds numbers alone",
            expected="a run on states",
            fix="train one with --data.obs-keys KEY ... and without --data.cameras",
        )
    # Other data than the run's own may be named here, so its content is not compared.
    config = dataclasses.replace(stored.experiment.data, path=str(asked.data)) if asked.data else stored.data()
    dataset = load_dataset(config)
    base.contract.require(
        dataset.spec, f"the file {dataset.path}", "make groups on data of the environment that the run is for"
    )
    rows, apart = choose_states(
        dataset, base.contract.chunk, asked.states, asked.seed, asked.held_out_share, asked.span
    )
    held_out = apart[dataset.steps[keys.EPISODE][rows]]
    return Request(asked, stored.checkpoint, base, dataset, rows, held_out, apart)


def _by_critic(request: Request) -> Groups:
    """Lower confidence bounds of a trained ensemble."""
    critic, held_out, caution = request.asked.critic or Path(), request.asked.held_out, request.asked.caution
    judges = _judges(critic, request.base.contract, caution)
    facts = {"critic": str(critic), "critic_sha256": fingerprint(resolve(critic)), "caution": caution}
    if held_out is not None:
        _require_another(critic, held_out)
        judges["held_out"] = _judges(held_out, request.base.contract, caution)["train"]
        facts |= {"held_out": str(held_out), "held_out_sha256": fingerprint(resolve(held_out))}
    elif "held_out" not in judges:
        raise ConfigError(
            f"{critic} held out no networks that could judge the result",
            expected="a critic trained with --agent.critic.held-out 2, or --held-out RUN",
            fix="train a second critic with another --seed, on other episodes (--data.filter-key), and name it",
        )
    found = request.candidate_chunks()
    n, k = found.action.shape[:2]
    obs = {name: value.repeat_interleave(k, 0) for name, value in found.obs.items()}
    score = judges["train"](obs, found.action.flatten(0, 1)).view(n, k)
    return request.groups(found, score, judges, **facts)


def _by_returns(request: Request) -> Groups:
    """Discounted rewards to go of the data at the nearest states."""
    asked = request.asked
    found = neighbour_candidates(request.base, request.dataset, request.rows, asked.candidates, request.apart)
    assert found.neighbours is not None
    score = returns_to_go(request.dataset, asked.discount)[found.neighbours]
    judges = request.fitted(found, score)
    groups = request.groups(found, score, judges, discount=asked.discount, caution=asked.caution)
    groups.outcomes["row"] = found.neighbours.numpy()
    return groups


def _by_simulator(request: Request, progress: Callable[[int], None]) -> Groups:
    """Outcomes of executing every candidate and letting the base finish the episode, ``limit`` steps at most.

    The labels of each state go to a journal: stopped, the same command goes on after the last one.
    """
    asked, limit = request.asked, request.asked.limit
    name, chunk = request.base.contract.spec.env_id, request.base.contract.chunk
    if 0 < limit <= chunk:
        raise ConfigError(
            f"--limit {limit} ends a rollout within the chunk of {chunk} actions that it is to judge",
            expected="0 for the environment's horizon, or as many steps as an episode needs from any state",
        )
    config = require_restorable(find_env(name), name)
    found = request.candidate_chunks()
    calls = state_calls(request.dataset, found, asked.seed, asked.rollouts, asked.completion_noise)
    create = functools.partial(CandidateRunner, config, request.folder, request.dataset.path.absolute(), limit)
    facts: dict[str, Any] = {"rollouts": asked.rollouts, "limit": limit, "completion_noise": asked.completion_noise}
    work = {**request.provenance(**facts), "rows": found.row.tolist(), "candidates": asked.candidates}
    del work["base"]  # its hash counts, not where it lies
    kept = Journal(asked.labels, work)
    progress(len(kept.entries))
    for label in in_order(create, "label", calls[len(kept.entries) :], asked.workers):
        kept.append([label.success.tolist(), label.steps.tolist()])
        progress(len(kept.entries))
    success = torch.tensor([entry[0] for entry in kept.entries])
    steps = torch.tensor([entry[1] for entry in kept.entries])
    remaining = config.spec().horizon - torch.tensor([call[1] for call in calls])
    score = simulator_scores(success, steps, remaining.clamp(min=1, max=limit or None))
    judges = request.fitted(found, score)
    facts |= {"simulated_steps": int(steps.sum()), "caution": asked.caution}
    groups = request.groups(found, score, judges, **facts)
    groups.outcomes |= {"success": success.numpy(), "steps": steps.numpy()}
    return groups


def _require_another(critic: Path, judge: Path) -> None:
    """Refuse a critic as the judge of itself, under whatever name."""
    weights = [read_json(resolve(run) / MANIFEST)["weights.safetensors"] for run in (critic, judge)]
    if weights[0] == weights[1]:
        raise ConfigError(
            f"--held-out {judge} has the same weights as --critic {critic}: it would judge what it was climbed on",
            fix="train a second critic with another --seed, on other episodes (--data.filter-key), and name it",
        )


def _judges(run: Path, base: Contract, caution: float) -> dict[str, Judge]:
    """The members of a value run's critic, and those that it held out."""
    stored = Run.load(run)
    experiment, contract = stored.experiment, stored.contract
    shapes = {key: int(torch.Size(spec.shape).numel()) for key, spec in contract.spec.observation.items()}
    size = contract.spec.action.size
    agent = experiment.agent.build(
        contract, Normalizer(shapes, size), steps=experiment.steps, seed=0, compile=False, device="cpu"
    )
    if not isinstance(agent, ValueAgent):
        raise ConfigError(f"{run} has no critic", expected="a run of fql, ifql, iql, qc, rebrac, fisher, mean-flow-q")
    if contract.chunk > base.chunk or contract.history > base.history or not set(shapes) <= set(base.spec.observation):
        raise ConfigError(
            f"{run} values {contract.chunk} action(s) at {contract.history} observation(s) of {', '.join(shapes)}",
            expected=f"at most {base.chunk} at {base.history} of {', '.join(base.spec.observation)}, as the base has",
            fix=f"train the critic with --agent.chunk {base.chunk} and the base's --data.obs-keys",
        )
    agent.load_state_dict({path.stem: read_tensors(path) for path in stored.checkpoint.glob("*.safetensors")})
    sizes = {"history": contract.history, "chunk": contract.chunk, "action": size, "caution": caution}
    return critic_judges(agent.critic, agent.normalizer, shapes, **sizes)
