"""What an observation and an action are, in words and numbers: :class:`Spec` and :class:`Contract`.

An environment, a dataset file and a robot each state a :class:`Spec`. A trained policy carries a
:class:`Contract`: the spec that it was trained for and how it is to be run. Before a policy meets a
dataset, an environment or a robot the two are compared, and a difference is an error that prints the
differing line.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from flowpolicy.core.config import decode, encode
from flowpolicy.core.errors import CheckpointError, ConfigError, ContractError
from flowpolicy.core.files import read_json, write_json

UNSTATED = "unstated"
"""Written where a file does not say; compares equal to anything."""

NO_SUCCESS = "not defined: the return counts"
"""Written as the definition of success of an environment that has none, such as Hopper."""

SIMULATORS = ("gymnasium", "mujoco", "robosuite", "gymnasium-robotics", "ogbench", "dm_control", "gym-pusht")
"""Packages whose version decides what an environment does."""


@dataclasses.dataclass(frozen=True)
class ObservationSpec:
    """One observation key: a stream of states or of pictures."""

    shape: tuple[int, ...]
    """Shape of one time step."""
    units: str = UNSTATED
    """Meaning and units in words, e.g. 'position of the gripper in the world frame, m'."""
    kind: Literal["state", "image"] = "state"
    """'state' (numbers that are scaled and put side by side) or 'image'."""
    dtype: Literal["float32", "uint8"] = "float32"
    """Type of the numbers as they are stored and sent; of a state always 'float32'."""
    channels: Literal["", "first", "last"] = ""
    """Of a picture, where its 1, 3 or 4 colour channels stand in ``shape``: 'first' (c, height, width) or 'last'
    (height, width, c). Empty for a state."""
    camera: str = UNSTATED
    """Of a picture, the name of the camera, e.g. 'agentview'; :class:`ImageSpec` says more of it."""
    words: tuple[str, ...] = dataclasses.field(default=(), metadata={"written": "unless default"})
    """Of an instruction out of a closed set, its texts in order: number k is 1 where the k-th is given, and else 0."""

    def __post_init__(self) -> None:
        what = f"an observation of kind '{self.kind}' with shape {self.shape} of {self.dtype}"
        if self.kind not in ("state", "image") or self.dtype not in ("float32", "uint8"):
            raise ConfigError(what, expected="kind state or image, dtype float32 or uint8")
        if any(size < 1 for size in self.shape):
            raise ConfigError(what, expected="a shape of numbers of at least 1")
        if self.kind == "state":
            if self.dtype != "float32" or self.channels or self.camera != UNSTATED:
                raise ConfigError(
                    f"{what}, channels '{self.channels}', camera '{self.camera}'",
                    expected="a state of float32, without channels and camera; or kind image",
                )
            if self.words and (self.shape != (len(self.words),) or len(set(self.words)) < len(self.words)):
                raise ConfigError(
                    f"{what} for {len(self.words)} instructions", expected="one number for each, and each text once"
                )
            return
        colours = {"first": self.shape[:1], "last": self.shape[-1:]}.get(self.channels)
        if len(self.shape) != 3 or colours not in ((1,), (3,), (4,)):
            raise ConfigError(
                f"{what}, channels '{self.channels}'",
                expected="1, 3 or 4 channels 'first' (c, height, width) or 'last' (height, width, c)",
            )


INSTRUCTION = "instruction"
"""Name of the observation that says which of the instructions of a dataset a row follows."""


def instruction_spec(texts: Sequence[str]) -> ObservationSpec:
    """The observation of an instruction out of a closed set: one number each, 1 for the one that is given."""
    return ObservationSpec((len(texts),), "which of the instructions is given, 0 or 1 each", words=tuple(texts))


@dataclasses.dataclass(frozen=True)
class RenderSpec:
    """How pictures were drawn: two pictures of one state drawn with other settings have other pixels."""

    library: str = UNSTATED
    """What draws, e.g. 'mujoco'."""
    version: str = UNSTATED
    """Its version, e.g. '3.8.1'."""
    geoms: Literal["", "visual", "collision"] = ""
    """Which geometry is drawn: the visual meshes, or the simple shapes of the collision model; empty if unknown."""
    msaa: int = -1
    """Samples per pixel that smooth edges (multi-sample anti-aliasing), 0 for none; -1 if unknown."""
    reflections: Literal["", "on", "off"] = ""
    """Whether mirroring materials mirror; empty if unknown."""
    shadows: Literal["", "on", "off"] = ""
    """Whether lights cast shadows; empty if unknown."""
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    """Whatever else changes pixels, by its name in the renderer, e.g. 'skybox': 'off'."""


@dataclasses.dataclass(frozen=True)
class ImageSpec(ObservationSpec):
    """One stream of pictures, rows from the top down: (height, width, 3) uint8 unless said otherwise."""

    units: str = "picture"
    kind: Literal["state", "image"] = "image"
    dtype: Literal["float32", "uint8"] = "uint8"
    channels: Literal["", "first", "last"] = "last"
    mount: str = UNSTATED
    """What the camera is fixed to, e.g. 'world' or 'robot0_right_hand'."""
    fov_deg: float = 0.0
    """Vertical field of view, degrees; 0 if unknown."""
    colour: str = "rgb"
    """Order of the colour channels."""
    rate_hz: float = 0.0
    """Pictures per second; 0 if unknown."""
    render: RenderSpec | None = None
    """How a simulator drew them; None where that is unknown, and for a real camera."""
    crop: tuple[int, ...] = ()
    """Left, top, width and height of what is kept of the camera's own picture, pixels; empty for all of it, and where
    that is unknown."""
    intrinsics: tuple[float, ...] = ()
    """Focal lengths and principal point fx, fy, cx, cy of the picture as it is seen, pixels; empty if unknown."""
    thumbnail: str = ""
    """How the pictures begin: 16 x 16 grey values in hexadecimal, the mean over first pictures of episodes; empty if
    unknown. Not compared: a scene differs from day to day; that two cameras were swapped shows in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "image":
            raise ConfigError(f"a stream of pictures of kind '{self.kind}'", expected="kind 'image'")

    @property
    def height(self) -> int:
        """Rows of a picture."""
        return self.shape[1 if self.channels == "first" else 0]

    @property
    def width(self) -> int:
        """Columns of a picture."""
        return self.shape[2 if self.channels == "first" else 1]


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The action convention. Every word of it decides whether an arm moves as intended."""

    size: int
    """Number of dimensions of one action."""
    convention: str = UNSTATED
    """'delta' (relative to the current pose), 'absolute', or the environment's own word."""
    frame: str = UNSTATED
    """Frame in which the action is expressed."""
    units: str = UNSTATED
    """Units of each part, and what the ends of the range stand for."""
    rotation: str = UNSTATED
    """Rotation representation, e.g. 'axis-angle'."""
    gripper: str = UNSTATED
    """Sign and meaning of the gripper dimension."""
    rate_hz: float = 0.0
    """Control rate; 0 where the file does not say."""
    low: float = -1.0
    """Smallest value that the environment accepts in any dimension."""
    high: float = 1.0
    """Largest value that the environment accepts in any dimension."""
    controller: str = UNSTATED
    """What executes the action, and with which gains, e.g. 'OSC_POSE, stiffness kp 150, damping ratio 1'."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an environment or dataset speaks."""

    observation: dict[str, ObservationSpec]
    """Streams by key, in the order in which states are put side by side."""
    action: ActionSpec
    """Action convention."""
    env_id: str = UNSTATED
    """Name of the environment, e.g. 'robosuite/Lift'."""
    env_version: str = UNSTATED
    """Version of the simulator package."""
    horizon: int = 0
    """Steps after which an episode is cut off; 0 where the file does not say."""
    success: str = UNSTATED
    """Definition of success in words."""
    reward_shift: float = 0.0
    """Added to the reward that the file or simulator gives."""
    robot: str = UNSTATED
    """Which arm acts, e.g. 'Franka FR3'."""
    start: tuple[float, ...] = ()
    """How the first observation of every episode begins, to 0.2, where all episodes begin alike. Not compared: it shows
    data of another environment that is as wide."""
    tool: str = UNSTATED
    """What is mounted on it: which point observations call the tool."""

    @property
    def defines_success(self) -> bool:
        """Whether an episode can succeed; False where its return is what counts."""
        return self.success != NO_SUCCESS

    @property
    def images(self) -> dict[str, ImageSpec]:
        """The streams of pictures, by key."""
        return {key: each for key, each in self.observation.items() if isinstance(each, ImageSpec)}

    @property
    def instructions(self) -> dict[str, tuple[str, ...]]:
        """Texts of which one is given, by the observation that says which: whoever asks gives it, nothing measures it.

        Empty for what takes no instruction; one entry otherwise.
        """
        return {key: each.words for key, each in self.observation.items() if each.words}

    def differences(self, other: Spec) -> list[str]:
        """Lines on which the two disagree; what either leaves unstated agrees with anything."""
        lines = []
        for key in [*self.observation, *(k for k in other.observation if k not in self.observation)]:
            if key not in other.observation or key not in self.observation:
                mine, theirs = key in self.observation, key in other.observation
                lines.append(f"observation {key}: {_presence(mine)} against {_presence(theirs)}")
            else:
                lines += _compare(f"observation {key}", self.observation[key], other.observation[key])
        lines += _compare("action", self.action, other.action)
        for field in ("env_id", "env_version", "horizon", "success", "reward_shift", "robot", "tool"):
            lines += _differ(field, getattr(self, field), getattr(other, field))
        return lines


@dataclasses.dataclass(frozen=True)
class Contract:
    """Everything that must hold where a policy is used; written as ``contract.json``."""

    spec: Spec
    """The spec that the policy was trained for."""
    history: int
    """Observations per decision."""
    chunk: int
    """Actions predicted per decision."""
    execute: int
    """Actions of a chunk that are executed before the next decision."""
    nfe: int
    """Network evaluations per chunk."""
    dataset_id: str = UNSTATED
    """Name of the training file."""
    dataset_sha256: str = UNSTATED
    """Hash of the training file."""
    dataset_filter: str = ""
    """Filter key that selected the training episodes; empty means all."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Versions of the libraries that the policy was trained with."""
    base: str = ""
    """Checkpoint that was post-trained; empty for a policy that was trained from scratch."""
    base_sha256: str = ""
    """Hash of that checkpoint."""
    groups: str = ""
    """Name of the file of scored candidates that it was post-trained on."""
    groups_sha256: str = ""
    """Hash of that file."""
    accepted: tuple[str, ...] = ()
    """In what the file was known to differ from the environment, or did not say; accepted by --data.accept."""
    groups_source: str = ""
    """'critic', 'returns', or 'simulator': then the policy saw labels from the simulator and is no offline result."""
    reward_scale: float = 1.0
    """Factor of the rewards that it was trained on; those of the environment are not scaled."""

    @property
    def histories(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what one decision sees: name -> (o, *shape)."""
        return {key: (self.history, *spec.shape) for key, spec in self.spec.observation.items()}

    def require(self, other: Spec, what: str, fix: str, *, allow_render_mismatch: bool = False) -> list[str]:
        """Raise :class:`ContractError` unless ``other`` offers what the policy was trained for.

        Extra observation keys of ``other`` are no disagreement: the policy does not read them. Nor is an instruction
        that it lacks: that is given (``spec.instructions``), and not observed.

        Args:
            other: what is offered.
            what: who offers it.
            fix: what to do about a difference.
            allow_render_mismatch: accept pictures of the right size and colours that were taken or drawn otherwise.

        Returns:
            The differences that were accepted, in lines.

        """
        wanted = {k: v for k, v in other.observation.items() if k in self.spec.observation}
        given = self.spec.instructions.keys() - wanted.keys()
        mine = {key: each for key, each in self.spec.observation.items() if key not in given}
        lines = dataclasses.replace(self.spec, observation=mine).differences(
            dataclasses.replace(other, observation=wanted)
        )
        drawn = [line for line in lines if _is_of_drawing(line)]
        if len(lines) == len(drawn) and allow_render_mismatch:
            return drawn
        if lines:
            if len(lines) == len(drawn):
                fix += "; or see what other pictures cost: --allow-render-mismatch"
            raise ContractError(
                f"the policy's contract and {what} disagree (contract against {what}):\n    " + "\n    ".join(lines),
                fix=fix,
            )
        return []


_KINDS: dict[str, type] = {
    "contract": Contract,
    "spec": Spec,
    "observation": ObservationSpec,
    "image": ImageSpec,
    "render": RenderSpec,
    "action": ActionSpec,
}


def image_json(image: ImageSpec) -> dict[str, Any]:
    """JSON values of what is said of a stream of pictures; a RoboMimic file holds them in ``env_args``."""
    values: dict[str, Any] = encode(image, _KINDS)
    return values


def read_image(value: Any, where: str) -> ImageSpec:
    """Inverse of :func:`image_json`. ConfigError names the place."""
    image = decode(value, _KINDS, where)
    if not isinstance(image, ImageSpec):
        raise ConfigError(
            f"{where} describes no stream of pictures", expected='{"class": "image", "shape": [...], ...}'
        )
    return image


def spec_json(spec: Spec) -> dict[str, Any]:
    """JSON values of a spec."""
    values: dict[str, Any] = encode(spec, _KINDS)
    return values


def read_spec(value: Any, where: str) -> Spec:
    """Inverse of :func:`spec_json`. ConfigError names the place."""
    spec = decode(value, _KINDS, where)
    if not isinstance(spec, Spec):
        raise ConfigError(f"{where} holds no spec", fix="delete it")
    return spec


def contract_json(contract: Contract) -> dict[str, Any]:
    """JSON values of a contract; inverse of :func:`contract_from` once ``schema`` is taken out.

    A scale of 1 is left out, so that contracts of before there was one keep their bytes.
    """
    values: dict[str, Any] = encode(contract, _KINDS)
    if contract.reward_scale == 1.0:
        del values["reward_scale"]
    return {"schema": 1, **values}


def save_contract(path: Path, contract: Contract) -> None:
    """Write ``contract.json`` atomically."""
    write_json(path, contract_json(contract))


def load_contract(path: Path) -> Contract:
    """Read ``contract.json``."""
    return read_contract(read_json(path), str(path))


def read_contract(value: Any, where: str) -> Contract:
    """Inverse of :func:`contract_json`."""
    if not isinstance(value, dict) or value.get("schema") != 1:
        raise CheckpointError(f"{where} has an unknown schema version", fix="use the flowpolicy version that wrote it")
    return contract_from({name: field for name, field in value.items() if name != "schema"}, where)


def contract_from(value: Mapping[str, Any], where: str) -> Contract:
    """Decode a contract from JSON values."""
    contract = decode(dict(value), _KINDS, where)
    if not isinstance(contract, Contract):
        raise CheckpointError(f"{where} does not hold a contract", fix="restore the file from a copy")
    return contract


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a policy computes."""
    names = ("flowpolicy", "torch", "numpy", *SIMULATORS)
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _presence(present: bool) -> str:
    return "present" if present else "absent"


def _compare(prefix: str, mine: Any, theirs: Any) -> list[str]:
    lines = []
    both = {field.name for field in dataclasses.fields(theirs)}
    for name in (field.name for field in dataclasses.fields(mine) if field.name in both - _UNCOMPARED):
        lines += _differ(f"{prefix}.{name}", getattr(mine, name), getattr(theirs, name))
    return lines


def _differ(name: str, mine: Any, theirs: Any) -> list[str]:
    if isinstance(mine, RenderSpec) and isinstance(theirs, RenderSpec):
        return _compare(name, mine, theirs)
    if name.endswith(".render.settings"):
        shared = sorted(mine.keys() & theirs.keys())
        return [line for key in shared for line in _differ(f"{name}.{key}", mine[key], theirs[key])]
    unstated = _UNSTATED.get(name.rpartition(".")[2], (UNSTATED,))
    if mine == theirs or mine in unstated or theirs in unstated:
        return []
    return [f"{name}: {mine!r} against {theirs!r}"]


_UNCOMPARED = {"thumbnail"}
"""Fields of which no two are alike."""

_UNSTATED: dict[str, tuple[Any, ...]] = {
    "rate_hz": (0,),
    "horizon": (0,),
    "fov_deg": (0,),
    "msaa": (-1,),
    "geoms": ("",),
    "reflections": ("",),
    "shadows": ("",),
    "render": (None,),
    "crop": ((),),
    "intrinsics": ((),),
}
"""Field -> the values that say nothing, where that is not :data:`UNSTATED`."""


def _is_of_drawing(line: str) -> bool:
    """Whether a difference is one of how pictures came to be, and not of what they are."""
    name = line.partition(":")[0]
    return name.startswith("observation ") and (
        ".render." in name or name.endswith((".camera", ".mount", ".fov_deg", ".rate_hz", ".crop", ".intrinsics"))
    )
