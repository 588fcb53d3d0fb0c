"""Small files in RoboMimic's layout whose pictures say what to do: a bright blob, and actions towards it."""

import json

import h5py
import numpy as np
import torch

from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.spec import ActionSpec, Contract, ImageSpec, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer

SIDE = 36
CAMERAS = ("front_image", "wrist_image")
OBSERVATION = {
    "state": ObservationSpec((3,)),
    **{key: ImageSpec((SIDE, SIDE, 3), camera=key.removesuffix("_image")) for key in CAMERAS},
}
SPEC = Spec(OBSERVATION, ActionSpec(2), env_id="blobs")


def blob(place, side=SIDE):
    """A picture (side, side, 3) with a bright square around ``place``, in [-1, 1] from left to right and downwards."""
    frame = np.full((side, side, 3), 40, np.uint8)
    x, y = (round((side - 9) * (part + 1) / 2) + 2 for part in place)
    frame[y : y + 5, x : x + 5] = 250
    return frame


def write_blobs(path, lengths=(12, 9, 15), compression=None, seed=0, images=None, **changes):
    """A file of episodes; ``changes`` are functions (demo group, name) that damage it."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        env = {"env_name": "blobs", "type": 9} | ({"images": images} if images else {})
        data.attrs["env_args"] = json.dumps(env)
        for number, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = steps
            places = rng.uniform(-1, 1, (steps + 1, 2))
            demo["actions"] = places[:-1].astype(np.float64)
            demo["rewards"], demo["dones"] = np.zeros(steps), np.eye(steps)[-1].astype(int)
            columns = {
                "state": rng.normal(size=(steps + 1, 3)),
                "front_image": np.stack([blob(place) for place in places]),
                "wrist_image": np.stack([blob(-place) for place in places]),
            }
            for key, value in columns.items():
                demo.create_dataset(f"obs/{key}", data=value[:-1], compression=compression)
                demo.create_dataset(f"next_obs/{key}", data=value[1:], compression=compression)
        data.attrs["total"] = sum(lengths)
        for change in changes.values():
            change(file)
    return path


def contract(history=1, chunk=4, **changes):
    return Contract(SPEC, history=history, chunk=chunk, execute=chunk, nfe=1, **changes)


def normalizer():
    return Normalizer({"state": 3}, 2)


def observed(rows, history=1, seed=0, side=SIDE):
    """Observation histories, in environment units."""
    rng = np.random.default_rng(seed)
    found = {"state": torch.from_numpy(rng.normal(size=(rows, history, 3)).astype(np.float32))}
    for key in CAMERAS:
        frames = rng.integers(0, 256, (rows, history, side, side, 3), dtype=np.uint8)
        found[key] = torch.from_numpy(frames)
    return found


def batch(rows=6, history=1, chunk=4, seed=0, side=SIDE, transitions=False):
    """A batch of windows, of transitions where they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(rows, chunk, 2, generator=generator) * 2 - 1
    found = {
        keys.OBS: Columns(observed(rows, history, seed, side)),
        keys.ACTION: action,
        keys.VALID: torch.ones(rows, chunk, dtype=torch.bool),
    }
    if transitions:
        found |= {
            keys.NEXT_OBS: Columns(observed(rows, history, seed + 1, side)),
            keys.NEXT_ACTION: action[:, 0],
            keys.REWARD: torch.rand(rows, chunk, generator=generator),
            keys.MASK: torch.ones(rows),
            keys.STEPS: torch.full((rows,), float(chunk)),
        }
    return Columns(found)
