"""Published dataset files by name: where they lie, and the SHA-256 of their content where it is known.

A hash is pinned here by whoever has downloaded the file and compared it with another source. An entry without one
is never downloaded silently: the caller states the hash, or puts the file in place by hand.
"""

from __future__ import annotations

import dataclasses

from flowpolicy.core.errors import ConfigError, nearest

_D4RL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_OGBENCH = "https://rail.eecs.berkeley.edu/datasets/ogbench"


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that can be downloaded."""

    name: str
    """Its name here, e.g. ``antmaze-umaze-v2``."""
    url: str
    sha256: str = ""
    """Hash of its content; empty while nobody has pinned it."""

    @property
    def file(self) -> str:
        """Name of the file in the cache folder."""
        return f"{self.name}{'.npz' if self.url.endswith('.npz') else '.hdf5'}"


def _d4rl() -> dict[str, str]:
    """Name -> path below D4RL's server."""
    found = {
        f"{env}-{kind}-v2": f"gym_mujoco_v2/{env}_{kind.replace('-', '_')}-v2.hdf5"
        for env in ("halfcheetah", "hopper", "walker2d", "ant")
        for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    }
    found |= {
        f"{task}-{kind}-v1": f"hand_dapg_v1/{task}-{kind}-v1.hdf5"
        for task in ("pen", "door", "hammer", "relocate")
        for kind in ("human", "cloned", "expert")
    }
    found |= {f"maze2d-{size}-v1": f"maze2d/maze2d-{size}-sparse-v1.hdf5" for size in ("umaze", "medium", "large")}
    starts = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
    for name, size, several_starts, several_goals in (
        ("umaze", "umaze", False, False),
        ("umaze-diverse", "umaze", True, True),
        ("medium-play", "medium", True, False),
        ("medium-diverse", "medium", True, True),
        ("large-play", "large", True, False),
        ("large-diverse", "large", True, True),
    ):
        file = f"Ant_maze_{starts[size]}_noisy_multistart_{several_starts}_multigoal_{several_goals}_sparse_fixed.hdf5"
        found[f"antmaze-{name}-v2"] = f"ant_maze_v2/{file}"
    found["kitchen-complete-v0"] = "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5"
    found["kitchen-partial-v0"] = "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5"
    found["kitchen-mixed-v0"] = "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5"
    return found


def _ogbench() -> list[str]:
    """Names of OGBench's state-based files of the environments that ``flowpolicy.envs`` knows; each has a -val."""
    sizes = {
        "pointmaze": ["medium", "large", "giant", "teleport"],
        "antmaze": ["medium", "large", "giant", "teleport"],
        "humanoidmaze": ["medium", "large", "giant"],
        "antsoccer": ["arena", "medium"],
    }
    found = [f"{body}-{size}-navigate-v0" for body, known in sizes.items() for size in known]
    cubes = [f"cube-{number}" for number in ("single", "double", "triple", "quadruple")]
    puzzles = [f"puzzle-{size}" for size in ("3x3", "4x4", "4x5", "4x6")]
    return found + [f"{env}-play-v0" for env in (*cubes, "scene", *puzzles)]


PUBLISHED = {
    **{name: Published(name, f"{_D4RL}/{path}") for name, path in _d4rl().items()},
    **{
        f"{name}{part}": Published(f"{name}{part}", f"{_OGBENCH}/{name}{part}.npz")
        for name in _ogbench()
        for part in ("", "-val")
    },
}
"""Downloadable files by name."""


def find_published(name: str) -> Published:
    """The entry with this name.

    Raises:
        ConfigError: there is none.

    """
    if name not in PUBLISHED:
        raise ConfigError(f"no published dataset is named '{name}'", expected=nearest(name, PUBLISHED))
    return PUBLISHED[name]
