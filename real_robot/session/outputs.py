"""Does a policy ask for more than its training file holds? Tried on recorded observations, before anything moves."""

from __future__ import annotations

import numpy as np
import torch

from flowpolicy.core import keys
from flowpolicy.core.seed import torch_generator
from flowpolicy.data.dataset import Dataset
from flowpolicy.policy.policy import Policy
from flowpolicy.real_robot.arm.braking import Motion
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits

JOINTS = "robot0_joint_pos"
_ROWS = 200
"""Observations that a policy is tried on."""
_SLACK, _SHARE = 0.05, 0.01
"""How far beyond the data, as a share of their range, counts as outside, and how many answers may be."""


def compare_workspace(dataset: Dataset, limits: EnvelopeLimits) -> list[str]:
    """Whether the arm was recorded where these limits let it be: what is beyond them is clipped."""
    if JOINTS not in dataset.steps[keys.OBS]:
        return []
    q = dataset.steps[keys.OBS, JOINTS].double().numpy()
    still = np.zeros_like(q)
    outside = 1.0 - Envelope(limits, 0.004).admissible(Motion(q, still, still)).mean()
    if outside <= _SHARE:
        return []
    return [
        f"{100 * outside:.0f} % of the recorded positions are outside the workspace or the joint range as set up here: "
        "the policy would be clipped there; are --table, --tool and --arm those of the recording?"
    ]


def _row(dataset: Dataset, key: str, rows: torch.Tensor, history: int) -> torch.Tensor:
    """(b, o, *shape): every row of an observation, states or pictures, as often as a history is long."""
    if key in dataset.frames:
        values = torch.from_numpy(dataset.frames[key].take(rows.numpy()))
    else:
        values = dataset.steps[keys.OBS, key][rows]
    return values[:, None].repeat(1, history, *[1] * (values.ndim - 1))


def compare_outputs(policy: Policy, dataset: Dataset) -> list[str]:
    """Dimensions in which a policy leaves what the data hold, on observations of the data.

    One whose actions were scaled wrongly shows here and not on the arm, where its gripper would open and close by
    chance.
    """
    steps, contract = dataset.steps, policy.contract
    rows = torch.linspace(0, len(steps) - 1, min(_ROWS, len(steps))).long()
    # As at the start of an episode: a history is its first row again and again.
    obs = {key: _row(dataset, key, rows, contract.history) for key in contract.spec.observation}
    asked = policy.act(obs, torch_generator(0, "robot", "check"))[:, : contract.execute].flatten(0, 1)
    low, high = steps[keys.ACTION].amin(0), steps[keys.ACTION].amax(0)
    slack = _SLACK * (high - low) + 1e-4
    outside = ((asked < low - slack) | (asked > high + slack)).double().mean(0)
    joints = contract.spec.action.frame == "joints"
    names = [(f"a step of joint {dim}", "rad") if joints else (f"number {dim}", "") for dim in range(1, len(low))]
    names.append(("the gripper", "m" if joints else ""))
    return [
        f"{name} is asked for from {asked[:, dim].min():.3f} to {asked[:, dim].max():.3f} {unit} where the data hold "
        f"{low[dim]:.3f} to {high[dim]:.3f}, in {100 * outside[dim]:.0f} % of the decisions: train it anew"
        for dim, (name, unit) in enumerate(names)
        if outside[dim] > _SHARE
    ]
