"""Do the cameras of a session show what a policy was trained on? Compared before anything moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from flowpolicy.core.errors import ContractError
from flowpolicy.core.spec import Contract, ImageSpec, Spec
from flowpolicy.data.hdf5_frames import SUFFIX
from flowpolicy.data.thumbnails import swapped_cameras
from flowpolicy.real_robot.session.camera_process import open_ring


def with_cameras(robot: Spec, contract: Contract, names: Collection[str]) -> Spec:
    """What a robot speaks, with the pictures that a policy sees by its cameras ``names``; what these are is seen later.

    Raises:
        ContractError: the policy sees by a camera that is not among them.

    """
    images = contract.spec.images
    missing = [key.removesuffix(SUFFIX) for key in images if key.removesuffix(SUFFIX) not in names]
    if missing:
        raise ContractError(
            f"the policy sees by the cameras {', '.join(key.removesuffix(SUFFIX) for key in images)}; missing: "
            f"{', '.join(missing)}",
            expected=f"here are: {', '.join(names) or 'none'}",
            fix=f"--cameras {' '.join(f'{name}=KIND:ARGUMENT' for name in missing)} ..., as the recordings were made",
        )
    return dataclasses.replace(robot, observation={**robot.observation, **images})


def require_cameras(contract: Contract, seen: Mapping[str, ImageSpec]) -> None:
    """Raise :class:`ContractError` unless running cameras, by name, give the pictures that a policy was trained on."""
    offered = {f"{name}{SUFFIX}": image for name, image in seen.items()}
    wanted = contract.spec.images
    mine = dataclasses.replace(contract.spec, observation=dict(wanted))
    theirs = dataclasses.replace(contract.spec, observation={k: offered[k] for k in wanted if k in offered})
    if lines := mine.differences(theirs):
        raise ContractError(
            "the policy's contract and the cameras disagree (contract against cameras):\n    " + "\n    ".join(lines),
            fix="take pictures as they were recorded: size=, crop=, resize= and colour= of --cameras",
        )


def swapped_warnings(contract: Contract, seen: Mapping[str, ImageSpec], folder: Path) -> list[str]:
    """Warnings where running cameras show what another one showed in training."""
    stated = {key.removesuffix(SUFFIX): image for key, image in contract.spec.images.items()}
    newest = {name: open_ring(folder, name, image).latest() for name, image in seen.items() if name in stated}
    return swapped_cameras(stated, {name: record["rgb"] for name, record in newest.items() if record is not None})
