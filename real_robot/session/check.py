"""Does a policy's contract fit the robot? Compared before anything moves."""

from __future__ import annotations

import numpy as np

from flowpolicy.core.errors import ContractError
from flowpolicy.core.spec import UNSTATED, Contract, Spec
from flowpolicy.policy.inputs import listed
from flowpolicy.real_robot.bridge.ring_records import ROWS
from flowpolicy.real_robot.bridge.watchdogs import WatchdogLimits


def check_contract(contract: Contract, robot: Spec) -> list[str]:
    """What was compared, one line each.

    Args:
        contract: the policy's.
        robot: what the robot speaks in the policy's task.

    Raises:
        ContractError: they disagree, or the policy decides too seldom for the bridge.

    """
    contract.require(robot, "the robot", "deploy the policy on the robot and task that it was trained for")
    action = contract.spec.action
    if not action.rate_hz:
        raise ContractError("the policy's contract states no rate", fix="train on a recording of `flowpolicy robot`")
    dt = 1.0 / action.rate_hz
    watch = WatchdogLimits()
    spare = (contract.chunk - contract.execute) * dt
    if contract.chunk > ROWS:
        raise ContractError(f"chunks of {contract.chunk} rows", expected=f"at most {ROWS}", fix="train with less")
    if contract.execute * dt > watch.heartbeat:
        raise ContractError(
            f"the policy decides every {contract.execute * dt:g} s",
            expected=f"at least every {watch.heartbeat:g} s, or the bridge takes it for dead",
            fix="train with a smaller --agent.execute",
        )
    if spare < dt:
        raise ContractError(
            f"of a chunk of {contract.chunk} rows all {contract.execute} are executed before the next decision",
            expected="at least one row more, to go on with while the policy decides",
            fix="train with a smaller --agent.execute or a larger --agent.chunk",
        )
    seen = [key for key, each in contract.spec.observation.items() if not each.words]
    told = [f"instructions  {listed(words)}" for words in contract.spec.instructions.values()]
    return [
        f"observations  {', '.join(seen)}",
        *told,
        f"robot         {robot.robot}, {robot.tool}",
        f"action        {action.convention}, {action.frame}: {action.units}",
        f"rate          {action.rate_hz:g} Hz, a decision every {contract.execute * dt:g} s, {spare:g} s in hand",
        f"data          {contract.dataset_id} {contract.dataset_sha256[:12]}",
        f"versions      trained with {_versions(contract)}",
    ]


def unstated_warnings(contract: Contract, robot: Spec) -> list[str]:
    """What the robot states and the contract does not, so that nobody compared it."""
    return [
        f"the contract does not state the {field}, here: {getattr(robot, field)}; recorded before it was kept"
        for field in ("robot", "tool")
        if getattr(contract.spec, field) == UNSTATED
    ]


def speed_warnings(largest: np.ndarray, velocity: np.ndarray) -> list[str]:
    """Joints that were trained to move faster, (n,) rad/s, than the envelope allows, (n,) rad/s."""
    return [
        f"joint {joint + 1} was trained on up to {largest[joint]:.2f} rad/s; the envelope allows {velocity[joint]:.2f}"
        for joint in range(len(velocity))
        if largest[joint] > velocity[joint]
    ]


def _versions(contract: Contract) -> str:
    names = ("flowpolicy", "torch", "python")
    return ", ".join(f"{name} {contract.versions[name]}" for name in names if name in contract.versions)
