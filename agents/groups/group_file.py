"""Group files: candidate chunks for some states, with scores, where they come from, and judges of new chunks.

HDF5, written whole or not at all, the same bytes for the same content::

    attributes      format "flowpolicy-groups", schema, provenance (JSON)
    obs/<name>      (n, o, d) observation history of each state, oldest first
    action          (n, k, h, a) candidates in environment units; number 0 is the data's own chunk
    valid           (n, h) False for steps past the episode's end; the same for all candidates of a state
    score           (n, k) higher is better; comparable inside a group
    row             (n,) row of the dataset that the state is
    held_out        (n,) True for states that no policy is trained on: there it is assessed
    outcomes/<name> (n, k, ...) what the scores were made of, e.g. success of every rollout
    judges/<name>/  tensors of a model that scores new chunks, its config (JSON) as an attribute
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.errors import DataError
from flowpolicy.core.files import sha256
from flowpolicy.core.protocols import BatchSource
from flowpolicy.core.spec import Contract
from flowpolicy.data.hdf5 import json_attribute, open_hdf5, read_array, read_attribute, require_group, written_whole
from flowpolicy.data.windows import WindowSampler

FORMAT = "flowpolicy-groups"
SCHEMA = 2


class StoredJudge(NamedTuple):
    """A model that scores chunks, as a file holds it; :mod:`flowpolicy.agents.groups.judges` makes one of it."""

    config: dict[str, Any]
    """JSON values."""
    tensors: dict[str, Tensor]


@dataclasses.dataclass
class Groups:
    """n states with k candidate chunks each."""

    obs: dict[str, Float[Tensor, "n o d"]]
    action: Float[Tensor, "n k h a"]
    valid: Bool[Tensor, "n h"]
    score: Float[Tensor, "n k"]
    row: Int64[Tensor, " n"]
    held_out: Bool[Tensor, " n"]
    provenance: dict[str, Any]
    """``source``, ``env_id``, ``base``, ``base_sha256``, ``dataset``, ``dataset_sha256`` and the options."""
    judges: dict[str, StoredJudge]
    outcomes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    path: Path = Path()
    sha256: str = ""
    """Hash of the file; empty for groups that were not read from one."""

    def require_fit(self, contract: Contract, base_sha256: str) -> None:
        """Raise :class:`DataError` unless these are groups of this base policy, whose contract this is."""
        spec = contract.spec
        if self.provenance.get("base_sha256") != base_sha256:
            raise DataError(
                f"{self.path} holds candidates of another policy ({self.provenance.get('base')}, "
                f"{str(self.provenance.get('base_sha256'))[:12]}...) than the base ({base_sha256[:12]}...)",
                expected="candidates that the base itself generated: the method weighs them against it",
                fix="flowpolicy groups make BASE --out FILE, with the run that is named by --base",
            )
        found = {name: tuple(value.shape[1:]) for name, value in self.obs.items()}
        wanted = {name: (contract.history, *each.shape) for name, each in spec.observation.items()}
        chunk = (contract.chunk, spec.action.size)
        if found != wanted or tuple(self.action.shape[2:]) != chunk:
            raise DataError(
                f"{self.path} holds observations {found} and chunks {tuple(self.action.shape[2:])}",
                expected=f"{wanted} and {chunk}, as in the contract of the base",
                fix="make the groups again from the run that is named by --base",
            )


def write_groups(path: Path, groups: Groups) -> None:
    """Write a group file, atomically.

    Raises:
        DataError: a score, chunk or observation is not finite, or the shapes disagree.

    """
    tensors = {name: getattr(groups, name) for name in _COLUMNS}
    tensors |= {f"obs/{name}": value for name, value in groups.obs.items()}
    _check(tensors, path)
    with written_whole(path) as file:
        file.attrs["format"], file.attrs["schema"] = FORMAT, SCHEMA
        file.attrs["provenance"] = json.dumps(groups.provenance, sort_keys=True)
        columns: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
        columns |= {f"outcomes/{name}": value for name, value in groups.outcomes.items()}
        for name, value in columns.items():
            file.create_dataset(name, data=value, track_times=False)
        for name, judge in groups.judges.items():
            node = file.create_group(f"judges/{name}")
            node.attrs["config"] = json.dumps(judge.config)  # not sorted: observations are joined in this order
            for key, tensor in judge.tensors.items():
                node.create_dataset(key, data=tensor.numpy(), track_times=False)


def is_groups(path: Path) -> bool:
    """Whether a file says that it is a group file."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return bool(read_attribute(file, "format", path) == FORMAT)


def read_groups(path: Path | str) -> Groups:
    """Read a group file; every value is checked.

    Raises:
        DataError: naming file, key and remedy, when the file is missing, foreign, truncated, of another schema,
            inconsistent, or holds NaN or infinity.

    """
    path = Path(path)
    with open_hdf5(path) as file:
        if read_attribute(file, "format", path) != FORMAT:
            raise DataError(
                f"{path} is not a group file; it holds {', '.join(map(str, file)) or 'nothing'}",
                expected="a file that `flowpolicy groups make` wrote",
                fix="pass a dataset file as --data.path, and a group file as --groups",
            )
        if (schema := read_attribute(file, "schema", path)) != SCHEMA:
            raise DataError(
                f"{path} has the group schema {schema}",
                expected=str(SCHEMA),
                fix="make the groups again with this version of flowpolicy",
            )
        provenance = json_attribute(file, "provenance", path)
        if not provenance:
            raise DataError(f"{path}: the attribute provenance is missing", fix="make the groups again")
        obs = require_group(file, keys.OBS, path)
        judges, outcomes = (require_group(file, name, path) if name in file else {} for name in ("judges", "outcomes"))
        columns = {name: _read(file, name, dtype, path) for name, dtype in _COLUMNS.items()}
        named = {name: _read(obs, name, "float32", path) for name in obs}
        _check(columns | {f"obs/{name}": value for name, value in named.items()}, path)
        return Groups(
            obs=named,
            **columns,
            provenance=provenance,
            judges={name: _read_judge(judges, name, path) for name in judges},
            outcomes={name: read_array(outcomes, name, path) for name in outcomes},
            path=path,
            sha256=sha256(path),
        )


_COLUMNS = {"action": "float32", "valid": "bool", "score": "float32", "row": "int64", "held_out": "bool"}


def _read(group: h5py.Group, name: str, dtype: str, path: Path) -> Tensor:
    found = read_array(group, name, path)
    if found.dtype != dtype:
        raise DataError(f"{path}: {name} holds {found.dtype}", expected=dtype)
    return torch.from_numpy(found)


def _read_judge(judges: h5py.Group, name: str, path: Path) -> StoredJudge:
    node = require_group(judges, name, path)
    tensors: dict[str, Tensor] = {}

    def visit(name: str, child: Any) -> None:  # names of tensors may hold slashes, which are groups in HDF5
        if isinstance(child, h5py.Dataset):
            tensors[name] = torch.from_numpy(read_array(node, name, path))

    node.visititems(visit)
    return StoredJudge(json_attribute(node, "config", path), tensors)


def _check(columns: dict[str, Tensor], path: Path) -> None:
    """Raise unless shapes agree and every number is finite."""
    action = columns["action"]
    if action.ndim != 4 or action.shape[0] == 0 or action.shape[1] < 2:
        raise DataError(
            f"{path}: action has shape {tuple(action.shape)}", expected="(states, candidates, steps, size), 2 or more"
        )
    n, k, h, _ = action.shape
    wanted = {"valid": (n, h), "score": (n, k), "row": (n,), "held_out": (n,)}
    for name, value in columns.items():
        found, shape = tuple(value.shape), wanted.get(name, (n, *(value.shape[1:] or (1,))))
        if found != shape:
            raise DataError(f"{path}: {name} has shape {found}", expected=str(shape))
        if not bool(torch.isfinite(value).all()):
            state = int((~torch.isfinite(value)).flatten(1).any(1).nonzero()[0])
            raise DataError(
                f"{path}: {name} holds NaN or infinity, first in state {state}",
                expected="finite numbers",
                fix="make the groups again; a critic that diverged gives such scores",
            )
    if not bool((~columns["held_out"]).any()):
        raise DataError(f"{path}: every state is held out", fix="make groups with a smaller --held-out-share")


class GroupSampler(BatchSource):
    """Draws windows of the dataset, and as many groups beside them.

    Args:
        windows: where the windows come from.
        groups: those that are not held out are drawn, with replacement.

    """

    def __init__(self, windows: WindowSampler, groups: Groups) -> None:
        self.windows = windows
        train = ~groups.held_out
        columns = {
            keys.ACTION: groups.action[train],
            keys.VALID: groups.valid[train],
            keys.SCORE: groups.score[train],
            keys.OBS: Columns({name: value[train] for name, value in groups.obs.items()}),
        }
        self.columns = Columns(columns).to(windows.device)

    def draw(self, generator: torch.Generator) -> Columns:
        """A batch of windows, as :meth:`WindowSampler.draw` gives it, with a batch of groups under ``"group"``."""
        batch = self.windows.draw(generator)
        size = (self.windows.batch_size,)
        index = torch.randint(self.columns.rows, size, generator=generator, device=generator.device)
        batch[keys.GROUP] = self.columns.at(index.to(self.windows.device))
        return batch


def reliability(outcome: np.ndarray) -> float:
    """Share of the variance between the mean outcomes of a state's candidates that is the candidates' own.

    ``1 - MS_residual / MS_candidates``, the intraclass correlation ICC(3, r) of Shrout and Fleiss 1979, "Intraclass
    correlations", within states; rollout j shares its noise among the candidates, which is why its mean is removed.
    Not below 0. At 0 the order inside groups is noise, however much the scores differ.

    Args:
        outcome: (n, k, r): r rollouts, 2 or more, of k candidates of n states.

    """
    outcome = outcome.astype(np.float64)
    _, k, r = outcome.shape
    candidates = outcome.mean(2, keepdims=True)
    residual = outcome - candidates - outcome.mean(1, keepdims=True) + outcome.mean((1, 2), keepdims=True)
    chance = np.square(residual).sum((1, 2)).mean() / ((k - 1) * (r - 1))
    between = r * candidates.var(axis=1, ddof=1).mean()
    return float(max(0.0, 1 - chance / between)) if between > 0 else 0.0


def describe_groups(groups: Groups) -> list[tuple[str, str]]:
    """Facts about a group file, as rows (name, value)."""
    n, k, h, a = groups.action.shape
    deviation = groups.score - groups.score.mean(1, keepdim=True)
    spread = deviation.square().mean(1).sqrt()
    best = groups.score.argmax(1)
    source = str(groups.provenance.get("source"))
    labelled = "simulator-labelled: report apart from offline results" if source == "simulator" else "offline"
    rows = [
        ("format", FORMAT),
        ("source", f"{source} ({labelled})"),
        ("states", f"{n}, of which {int(groups.held_out.sum())} are held out"),
        ("candidates", f"{k} chunks of {h} actions of {a} dimensions; number 0 is the data's own"),
        ("scores", f"from {float(groups.score.min()):.4g} to {float(groups.score.max()):.4g}"),
        ("spread in a group", f"{float(spread.median()):.3g} (median), {float(spread.max()):.3g} (largest)"),
        ("groups that all tie", f"{float((spread < 1e-6).float().mean()):.1%}"),
        ("the data's chunk is best in", f"{float((best == 0).float().mean()):.1%}"),
    ]
    if (success := groups.outcomes.get("success")) is not None:
        share = success.reshape(n, -1).mean(1)
        every, none = (share == 1).mean(), (share == 0).mean()
        rows.append(("rollouts of a state", f"all succeed {every:.1%}, none {none:.1%}, differ {1 - every - none:.1%}"))
        if groups.provenance.get("completion_noise") == 0:
            told = "the base finished without chance: the candidate alone decides, small things in it too"
        else:
            told = f"{reliability(success):.2f}" if success.shape[2] > 1 else "not known from one rollout each"
            told += " (0: chance alone, 1: the candidate alone decides)"
        rows.append(("reliability of the labels", told))
    rows += [(f"outcome {name}", f"{v.shape}, mean {float(v.mean()):.4g}") for name, v in groups.outcomes.items()]
    rows += [(f"  {name}", str(value)) for name, value in groups.provenance.items() if name != "source"]
    rows.append(("judges", ", ".join(groups.judges) or "none"))
    return [*rows, ("sha256", groups.sha256)]
