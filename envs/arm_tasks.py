"""Tasks of a real arm, as specs: what `train` needs to state a policy's contract.

They are not stepped here: `flowpolicy robot run` drives a policy through the bridge, in real time, on the arm or on one
of its stand-ins. Observations and actions follow from the model of the arm (:mod:`flowpolicy.real_robot.arm`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flowpolicy.core.errors import SimulatorError
from flowpolicy.core.spec import UNSTATED, ActionSpec, ObservationSpec, Spec
from flowpolicy.real_robot.arm.action_conventions import action_named, nearest_action
from flowpolicy.real_robot.arm.arm_model import ArmModel, ArmTask
from flowpolicy.real_robot.arm.models import ARMS, find_arm

_REACH = ("goal", ObservationSpec((3,), "where the tool point should go, base frame, m"))
_LIFT = (
    "object",
    ObservationSpec((6,), "position of the cube in the base frame, then from the tool point, m"),
)
_OWN = {"reach": _REACH, "lift": _LIFT}
"""What is seen of a task's things, beside the arm and pictures."""


def arm_observations(arm: ArmModel) -> dict[str, ObservationSpec]:
    """What a policy sees of an arm, whatever the task."""
    return {
        "robot0_joint_pos": ObservationSpec((arm.joints,), "measured joint positions, rad"),
        "robot0_joint_vel": ObservationSpec((arm.joints,), "measured joint velocities, rad/s"),
        "robot0_eef_pos": ObservationSpec((3,), "tool point in the base frame, m"),
        "robot0_eef_quat": ObservationSpec(
            (4,), "flange in the base frame, x y z w; x >= 0 in an episode's first row, then nearest to the row before"
        ),
        "robot0_gripper_qpos": ObservationSpec((2,), "half the opening per finger, mirrored, m"),
    }


@dataclasses.dataclass(frozen=True)
class ArmTaskConfig:
    """One task of an arm."""

    task: ArmTask = "reach"
    """What is to be done."""
    horizon: int = 240
    """Steps after which an episode is cut off."""
    arm: str = "fr3"
    """Which arm."""
    tool: float | None = None
    """Distance from flange to tool point, m; None where only the task is meant: then any arm of the family fits."""
    action: str = "joint-delta"
    """What the numbers of an action mean, see :mod:`flowpolicy.real_robot.arm.action_conventions`."""

    def spec(self) -> Spec:
        """The spec."""
        arm, meant = find_arm(self.arm), self.tool is not None
        own = dict([_OWN[self.task]]) if self.task in _OWN else {}
        success = {
            "reach": "the tool point has been within 0.02 m of the goal for 0.2 s",
            "lift": "the cube is 0.08 m above where it lay",
            "taught": "a person, or a detector of theirs, says so",
        }
        return Spec(
            observation={**arm_observations(arm), **own},
            action=action_named(self.action, arm),
            env_id=f"{arm.family}/{self.task.title()}",
            env_version="2",
            horizon=self.horizon,
            success=success[self.task],
            robot=arm.robot if meant else UNSTATED,
            tool=f"tool point {self.tool:g} m beyond the flange" if meant else UNSTATED,
        )

    def speaking(self, stated: ActionSpec) -> Spec:
        """The spec with the action of a recording or a contract, where that is a convention of the arm.

        In which convention a task is done, only they know. Where their words are of none, the nearest one stands here,
        for a comparison to tell in what they differ.
        """
        spec = self.spec()
        if stated.convention == UNSTATED and stated.frame == UNSTATED:
            return spec
        return dataclasses.replace(spec, action=nearest_action(stated, find_arm(self.arm)))

    def env_args(self, spoken: ActionSpec | None = None) -> dict[str, Any]:
        """``env_args`` of a recording; type 2 (gym) only because the format has no word for a robot.

        Args:
            spoken: how its actions are written, where a policy's contract says so; as ``action`` says unless given.

        """
        spec = self.spec()
        action = spec.action if spoken is None else spoken
        return {
            "env_name": spec.env_id,
            "env_version": spec.env_version,
            "type": 2,
            "env_kwargs": {},
            "observation_units": {key: one.units for key, one in spec.observation.items()},
            "robot": spec.robot,
            "tool": spec.tool,
            "action_spec": {k: v for k, v in dataclasses.asdict(action).items() if k != "size"},
        }

    def make(self, num_envs: int) -> Any:
        """Refused: the arm is no simulator."""
        raise self._elsewhere("run RUN")

    def replay(self, dataset: Any, episodes: int) -> list[bool]:
        """Refused, for the same reason."""
        raise self._elsewhere("replay FILE")

    def _elsewhere(self, command: str) -> SimulatorError:
        return SimulatorError(
            f"the task '{self.spec().env_id}' is played on the robot or its stand-ins, not by this command",
            fix=f"flowpolicy robot {command}",
        )


_FIRST = {arm.family: name for name, arm in reversed(ARMS.items())}
ARM_TASKS: dict[str, ArmTaskConfig] = {
    f"{family}-{task}": ArmTaskConfig(task, arm=name)
    for family, name in sorted(_FIRST.items())
    for task in find_arm(name).tasks
}
"""The tasks of every family of arms, by the names that the command line uses: 'franka-reach', 'ur5e-reach'."""
