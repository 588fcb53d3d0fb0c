"""Runs that start from another run: what the base decides, and what the agent is built from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flowpolicy.agents.groups.group_file import Groups, read_groups
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.spec import Contract
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import FlowSampler
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.run import Run


def take_over(experiment: Experiment) -> Experiment:
    """The experiment with everything that its base decides: environment, scaling, network and sizes.

    The data is the base's too, unless other data is named.

    Raises:
        ConfigError: base or groups are missing or make no sense, or a field contradicts the base.

    """
    if experiment.agent.needs != "groups":
        for flag, value in (("--base", experiment.base), ("--groups", experiment.groups)):
            if value:
                raise ConfigError(
                    f"{flag} {value} has no meaning for {type(experiment.agent).__name__}",
                    fix="leave it out, or choose a preset that post-trains, such as gdro-lift",
                )
        return experiment
    if not experiment.base or not experiment.groups:
        raise ConfigError(
            "post-training needs a trained run and scored candidates of it",
            expected="--base RUN --groups FILE",
            fix="flowpolicy groups make RUN --source critic|simulator|returns --out FILE",
        )
    run = Run.load(experiment.base)
    base, policy = run.experiment, run.policy_config
    require_flow(policy, experiment.base)
    sizes = {name: getattr(base.agent, name) for name in ("history", "chunk", "execute", "nfe")}
    decided = {**sizes, "net": policy.net, "encoder": policy.encoder, "sampler": policy.sampler}
    _require_same(experiment.agent, decided, "agent.")
    _require_same(experiment, {"normalizer": base.normalizer}, "")
    if experiment.data.path in ("", base.data.path):
        run.data()
    return dataclasses.replace(
        experiment,
        agent=dataclasses.replace(experiment.agent, **decided),
        env=base.env,
        data=experiment.data if experiment.data.path else base.data,
        normalizer=base.normalizer,
        # Absolute, so that the run can be resumed from another working directory.
        base=str(run.checkpoint.absolute()),
        groups=str(Path(experiment.groups).absolute()),
    )


def require_flow(policy: PolicyConfig, where: str) -> None:
    """Raise :class:`ConfigError` unless groups can shift the likelihood of a policy.

    What a group teaches is a log-ratio, and it is estimated from the errors of a velocity between standard Gaussian
    noise and chunks on the straight path. Solver, schedule and the objective of a flow map are free.
    """
    sampler, reason = policy.sampler, ""
    if sampler.prefix:
        reason = "continues committed actions, which no group holds"
    elif not isinstance(sampler, FlowSampler):
        reason = f"is a {type(sampler).__name__} policy, which has no likelihood that groups could shift"
    else:
        flow = sampler.sampling
        wrong = [
            flow.interpolant.flag if not isinstance(flow.interpolant, Linear) else "",
            flow.source.flag if flow.source.name not in ("normal", "warm-start") else "",
            flow.target.flag if flow.target.converts or flow.target.integrates else "",
            flow.solver.flag if flow.solver.belongs_to else "",
            flow.guidance.flag if flow.guidance.name != "none" else "",
            "a refiner" if sampler.refiner else "",
        ]
        if any(wrong):
            reason = f"has {' and '.join(filter(None, wrong))}, for which no log-ratio is known here"
    if reason:
        raise ConfigError(
            f"{where} {reason}",
            expected="a velocity or a flow map on the straight path from Gaussian noise: dm1-*, flow-bc-*, or --flow "
            "flags of time, loss, consistency, coupling, solver and schedule",
        )


def load_base(experiment: Experiment, contract: Contract) -> tuple[Contract, Policy, Groups]:
    """The contract with the hashes of base and groups, and both."""
    run, groups = Run.load(experiment.base), read_groups(experiment.groups)
    base, digest = run.policy(device=experiment.device), run.identity.sha256
    groups.require_fit(base.contract, digest)
    contract = dataclasses.replace(
        contract,
        base=str(run.checkpoint),
        base_sha256=digest,
        groups=groups.path.name,
        groups_sha256=groups.sha256,
        groups_source=str(groups.provenance.get("source")),
    )
    return contract, base, groups


def require_same_start(contract: Contract, stored: Contract) -> None:
    """Refuse to resume from another base or other groups than the run was started from."""
    for what, name in (("base", "base_sha256"), ("groups", "groups_sha256")):
        now, then = getattr(contract, name), getattr(stored, name)
        if now != then:
            raise DataError(
                f"the {what} of the run, {getattr(contract, what)}, changed since it was started "
                f"(SHA-256 {now[:12]}..., was {then[:12]}...)",
                fix="restore it, or start a new run",
            )


def _require_same(given: Any, decided: dict[str, Any], prefix: str) -> None:
    """A field of ``given`` is either left at its default or what the base says."""
    defaults = {field.name: field.default for field in dataclasses.fields(given)}
    for name, value in decided.items():
        if getattr(given, name) not in (defaults[name], value):
            raise ConfigError(
                f"--{prefix}{name} is {getattr(given, name)!r}, the base has {value!r}",
                expected="the base's, which is what is post-trained",
                fix="leave it out",
            )
