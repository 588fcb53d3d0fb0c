"""A contract as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowpolicy.core.spec import UNSTATED, ActionSpec, Contract, ImageSpec, ObservationSpec


def contract_sentences(contract: Contract) -> list[str]:
    """What a policy may be used for, in words: one sentence a line."""
    spec = contract.spec
    robot = "" if spec.robot == UNSTATED else f" with {spec.robot}"
    tool = "" if spec.tool == UNSTATED else f", tool {spec.tool}"
    version = "" if spec.env_version == UNSTATED else f", version {spec.env_version}"
    lines = [f"Made for {spec.env_id}{version}{robot}{tool}."]
    seen = "the newest observation" if contract.history == 1 else f"the newest {contract.history} observations"
    lines.append(f"It sees {seen}: {'; '.join(_seen(k, o) for k, o in spec.observation.items())}.")
    lines.append(
        f"It decides on {contract.chunk} actions at a time by {contract.nfe} network "
        f"evaluation{'s' if contract.nfe > 1 else ''}, and executes {contract.execute} of them before it decides again."
    )
    lines += _action(spec.action)
    ends = f" An episode is cut off after {spec.horizon} steps." if spec.horizon else ""
    success = "not stated" if spec.success == UNSTATED else spec.success
    lines.append(f"Success: {success.removesuffix('.')}.{ends}")
    chosen = f", episodes '{contract.dataset_filter}' of it" if contract.dataset_filter else ""
    lines.append(f"Trained on {contract.dataset_id}{chosen} (SHA-256 {contract.dataset_sha256[:12]}).")
    if contract.base:
        lines.append(f"Made from the policy {contract.base} (SHA-256 {contract.base_sha256[:12]}).")
    if contract.groups:
        lines.append(f"Post-trained on the scored candidates of {contract.groups}, source: {contract.groups_source}.")
    if contract.accepted:
        lines.append(f"Accepted differences of the data: {'; '.join(contract.accepted)}.")
    return lines


def _seen(key: str, observation: ObservationSpec) -> str:
    shape = " x ".join(map(str, observation.shape))
    if isinstance(observation, ImageSpec):
        camera = "" if observation.camera == UNSTATED else f" of the camera {observation.camera}"
        return f"{key}, pictures{camera}, {observation.height} x {observation.width}"
    if observation.words:
        return f"{key}, one of {len(observation.words)} instructions"
    unit = "" if observation.units == UNSTATED else f", {observation.units}"
    return f"{key} ({shape}{unit})"


def _action(action: ActionSpec) -> list[str]:
    said: Mapping[str, Any] = {
        "": action.convention,
        "frame ": action.frame,
        "rotation ": action.rotation,
        "gripper ": action.gripper,
    }
    parts = [f"{name}{value}" for name, value in said.items() if value != UNSTATED]
    rate = f" at {action.rate_hz:g} Hz" if action.rate_hz else ""
    about = f": {'; '.join(parts)}" if parts else ""
    lines = [f"An action is {action.size} numbers from {action.low:g} to {action.high:g}{rate}{about}."]
    if action.units != UNSTATED:
        lines.append(f"Their units: {action.units.removesuffix('.')}.")
    if action.controller != UNSTATED:
        lines.append(f"They are executed by {action.controller.removesuffix('.')}.")
    return lines
