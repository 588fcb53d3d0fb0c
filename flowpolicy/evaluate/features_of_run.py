"""What a policy's networks make of the pictures of a file: features per camera and of the trunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, DataError, nearest
from flowpolicy.core.seed import numpy_generator, torch_generator
from flowpolicy.data.dataset import DataConfig, Dataset, load_dataset, open_recording
from flowpolicy.data.windows import WindowSampler
from flowpolicy.evaluate.representation import FOLDS, Figures, KnownScene, Sample, figures, look_alikes
from flowpolicy.nets.encoder import EncoderOutput
from flowpolicy.nets.trunk import FlowOutput, Trunk
from flowpolicy.nets.vision import VisionProjection
from flowpolicy.policy import Policy

TRUNK = "trunk"
THING, HAND = "object", "robot0_eef_pos"
"""Observations of RoboMimic's files that begin with the position of the object and of the hand, in metres."""
FEWEST = 64
"""Rows below which figures over pairs and probes mean nothing."""
_TOGETHER = 128
_MM, _PLACE = 1000.0, 3


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a policy on rows of a file, and what the file knows of the same rows."""

    samples: dict[str, Sample]
    """Of every camera by its observation, and of the trunk."""
    episode: Int[NDArray[np.int64], " n"]
    """Episode of every row."""
    scene: KnownScene | None
    """None where the file does not know where the object is."""
    trained_on: bool
    """Whether the file is the one that the policy was trained on."""

    @property
    def pairs(self) -> int:
        """Pairs that differ in the object and not in the hand."""
        return int(look_alikes(self.scene).sum()) if self.scene else 0

    def figures(self) -> dict[str, Figures]:
        """All figures of every feature."""
        return {name: figures(sample, self.episode, self.scene) for name, sample in self.samples.items()}


def features_of(
    policy: Policy,
    data: DataConfig,
    rows: int = 2048,
    seed: int = 0,
    thing: str = "",
    hand: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> Features:
    """Features on rows of a file drawn without replacement, none of them the last one of its episode.

    The trunk's is its first hidden layer in the first evaluation of a decision, at zero noise, so that rows differ by
    what was observed alone.

    Args:
        policy: one that sees pictures.
        data: file and what of it the policy observes.
        rows: how many.
        seed: of the rows and of the windows of the augmented pictures.
        thing: observation whose first three numbers are where the object is, in metres; :data:`THING`, where the file
            has it, unless given.
        hand: likewise of the hand; :data:`HAND`.
        progress: called with the number of rows that are done.

    Raises:
        ConfigError: the policy sees no pictures.
        DataError: the file lacks what the policy observes, or has too few rows or episodes.

    """
    encoder = policy.actor.encoder
    if not isinstance(encoder, VisionProjection):
        seen = ", ".join(policy.contract.spec.observation)
        raise ConfigError(
            f"a policy that sees no pictures: it observes {seen}",
            expected="the run of a preset with cameras, such as dm1-lift-image",
        )
    dataset = load_dataset(data)
    index = _chosen(dataset, rows, seed)
    scene = _scene(dataset, data, index, thing, hand)
    contract = policy.contract
    whole = WindowSampler(dataset, contract.history, contract.chunk, 1)
    cropped = WindowSampler(dataset, contract.history, contract.chunk, 1, crops=encoder.crops)
    crops = [numpy_generator(seed, "features", which) for which in ("first", "second")]
    moves = any(
        places > 1 for key, crop in encoder.crops.items() for places in crop.places(*dataset.frames[key].shape[1:3])
    )
    found: dict[str, list[dict[str, Tensor]]] = {"middle": [], "following": [], "first": [], "second": []}
    done = 0
    for part in torch.from_numpy(index).split(_TOGETHER):
        found["middle"].append(_features(policy, whole.at(part)[keys.OBS]))
        found["following"].append(_features(policy, whole.at(part + 1)[keys.OBS]))
        if moves:
            for name, generator in zip(("first", "second"), crops, strict=True):
                found[name].append(_features(policy, cropped.at(part, generator)[keys.OBS]))
        done += len(part)
        progress(done)
    joined = {name: _joined(parts) for name, parts in found.items() if parts}
    samples = {
        key: Sample(
            middle,
            (joined["first"][key], joined["second"][key]) if moves else None,
            joined["following"][key],
        )
        for key, middle in joined["middle"].items()
    }
    episode = dataset.steps[keys.EPISODE][index].numpy()
    trained_on = dataset.sha256 == contract.dataset_sha256
    return Features(samples, episode, scene, trained_on)


def _chosen(dataset: Dataset, rows: int, seed: int) -> Int[NDArray[np.int64], " n"]:
    """Rows that have a following one in their episode."""
    last = (dataset.starts + dataset.lengths - 1).numpy()
    there = np.setdiff1d(np.arange(dataset.steps.rows), last)
    if rows < FEWEST or len(there) < rows:
        most = len(there)
        raise DataError(
            f"{dataset.path}: features of {rows:,} rows; it has {most:,} that are not the last of their episode",
            expected=f"{FEWEST} or more, and no more than there are",
            fix=f"--rows {max(FEWEST, min(rows, most))}" if most >= FEWEST else "name a larger file",
        )
    if len(dataset.lengths) < 2:
        raise DataError(
            f"{dataset.path} holds one episode",
            expected=f"two or more, best {FOLDS} or more: the probe is judged on episodes that it was not fitted to",
        )
    return np.sort(numpy_generator(seed, "features", "rows").choice(there, rows, replace=False))


@torch.no_grad()
def _features(policy: Policy, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features of observation histories by name, (b, f) each, as one decision makes them at zero noise."""
    actor, contract, candidates = policy.actor, policy.contract, policy.config.sampler.candidates
    heard: dict[str, Tensor] = {}

    def encoded(module: nn.Module, given: Any, output: EncoderOutput) -> None:
        heard.update(output.features)

    def asked(module: nn.Module, given: Any, output: FlowOutput) -> None:
        heard.setdefault(TRUNK, output.features["trunk"][::candidates])

    trunks = [module for module in actor.net.modules() if isinstance(module, Trunk)]
    hooks = [actor.encoder.register_forward_hook(encoded), *(trunk.register_forward_hook(asked) for trunk in trunks)]
    try:
        streams = policy.streams(dict(obs))
        rows = len(next(iter(streams.values())))
        noise = torch.zeros(rows * candidates, contract.chunk, contract.spec.action.size)
        policy.decide(streams, noise, contract.nfe, generator=torch_generator(0, "features"))
    finally:
        for hook in hooks:
            hook.remove()
    return heard


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, NDArray[np.float32]]:
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _scene(dataset: Dataset, data: DataConfig, index: NDArray[np.int64], thing: str, hand: str) -> KnownScene | None:
    """Where object and hand are in the rows ``index``; None where the file does not say where the object is."""
    columns = dict(dataset.steps[keys.OBS].items())
    with open_recording(dataclasses.replace(data, obs_keys=(), cameras=())) as recording:
        states = recording.spec.observation
    places = {}
    for name, usual in ((thing, THING), (hand, HAND)):
        key = name or usual
        if key not in states or states[key].shape[0] < _PLACE:
            if not name:
                continue
            has = f"has {states[key].shape[0]} numbers" if key in states else "is none of its states"
            known = [other for other, spec in states.items() if spec.shape[0] >= _PLACE]
            raise DataError(f"{dataset.path}: '{key}' {has}, and a position has {_PLACE}", expected=nearest(key, known))
        if key not in columns:
            columns |= load_dataset(dataclasses.replace(data, obs_keys=(key,), cameras=())).steps[keys.OBS]
        places[usual] = _MM * columns[key][torch.from_numpy(index), :_PLACE].numpy()
    return KnownScene(places[THING], places.get(HAND)) if THING in places else None
