"""Scores on D4RL files that papers report, on D4RL's own simulator. Nothing here was measured by us."""

from __future__ import annotations

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.envs.ogbench_scores import PublishedScore

_MEASURED = "Park, Li, Levine, Flow Q-Learning (2025): 500k updates, 8 seeds"
_QUOTED = "quoted by Park, Li, Levine, Flow Q-Learning (2025) from an earlier paper"

_METHODS = {"antmaze": ("bc", "iql", "rebrac", "idql", "ifql", "fql"), "adroit": ("bc", "iql", "rebrac", "ifql", "fql")}
_PUBLISHED = {
    "antmaze-umaze-v2": "55 77 98 94 92±6 96±2",
    "antmaze-umaze-diverse-v2": "47 54 84 80 62±12 89±5",
    "antmaze-medium-play-v2": "0 66 90 84 56±15 78±7",
    "antmaze-medium-diverse-v2": "1 74 84 85 60±25 71±13",
    "antmaze-large-play-v2": "0 42 52 64 55±9 84±7",
    "antmaze-large-diverse-v2": "0 30 64 68 64±8 83±4",
    "pen-human-v1": "71 78 103 71±12 53±6",
    "pen-cloned-v1": "52 83 103 80±11 74±11",
    "pen-expert-v1": "110 128 152 139±5 142±6",
    "door-human-v1": "2 3 0 7±2 0",
    "door-cloned-v1": "0 3 0 2±2 2±1",
    "door-expert-v1": "105 107 106 104±2 104±1",
    "hammer-human-v1": "3 2 0 3±1 1±1",
    "hammer-cloned-v1": "1 2 5 2±1 11±9",
    "hammer-expert-v1": "127 129 134 117±9 125±3",
    "relocate-human-v1": "0 0 0 0 0",
    "relocate-cloned-v1": "0 0 2 0 0",
    "relocate-expert-v1": "108 106 108 104±3 107±1",
}
"""File -> normalised score for each of the methods, mean±std over seeds; without ± where it was quoted."""


def published_scores(dataset: str) -> dict[str, PublishedScore]:
    """Published normalised scores per method on a file, such as ``door-human-v1`` or ``antmaze-large-play-v2``.

    Raises:
        ConfigError: nobody published any that we know of; measured values then stand alone.

    """
    if dataset not in _PUBLISHED:
        raise ConfigError(f"there are no published scores for {dataset}", expected=nearest(dataset, _PUBLISHED))
    methods = _METHODS["antmaze" if dataset.startswith("antmaze") else "adroit"]
    found = {}
    for method, text in zip(methods, _PUBLISHED[dataset].split(), strict=True):
        mean, _, std = text.partition("±")
        found[method] = PublishedScore(float(mean), float(std) if std else None, _MEASURED if std else _QUOTED)
    return found
