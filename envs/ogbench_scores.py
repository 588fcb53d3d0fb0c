"""Success on OGBench's single-task variants that papers report. Nothing here was measured by us."""

from __future__ import annotations

import dataclasses

from flowpolicy.core.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class PublishedScore:
    """What a paper reports: success in per cent, or a normalised score. Not measured here."""

    mean: float
    std: float | None
    """Standard deviation over seeds; None where the paper gives none."""
    source: str = "Park, Li, Levine, Flow Q-Learning (2025): 1M updates of 4 x 512 networks, 8 seeds, 50 episodes"


_METHODS = ("iql", "rebrac", "ifql", "fql")
_PUBLISHED = {
    "antmaze-large": (
        "48±9 91±10 24±17 80±8; 42±6 88±4 8±3 57±10; 72±7 51±18 52±17 93±3; 51±9 84±7 18±8 80±4; 54±22 90±2 38±18 83±4"
    ),
    "antmaze-giant": (
        "0±0 27±22 0±0 4±5; 1±1 16±17 0±0 9±7; 0±0 34±22 0±0 0±1; 0±0 5±12 0±0 14±23; 19±7 49±22 13±9 16±28"
    ),
    "humanoidmaze-medium": (
        "32±7 16±9 69±19 19±12; 41±9 18±16 85±11 94±3; 25±5 36±13 49±49 74±18; 0±1 15±16 1±1 3±4; 66±4 24±20 98±2 97±2"
    ),
    "humanoidmaze-large": "3±1 2±1 6±2 7±6; 0±0 0±0 0±0 0±0; 7±3 8±4 48±10 11±7; 1±0 1±1 1±1 2±3; 1±1 2±2 0±0 1±3",
    "antsoccer-arena": (
        "14±5 0±0 61±25 77±4; 17±7 0±1 75±3 88±3; 6±4 0±0 14±22 61±6; 3±2 0±0 16±9 39±6; 2±2 0±0 0±1 36±9"
    ),
    "cube-single": (
        "88±3 89±5 79±4 97±2; 85±8 92±4 73±3 97±2; 91±5 93±3 88±4 98±2; 73±6 92±3 79±6 94±3; 78±9 87±8 77±7 93±3"
    ),
    "cube-double": "27±5 45±6 35±9 61±9; 1±1 7±3 9±5 36±6; 0±0 4±1 8±5 22±5; 0±0 1±1 1±1 5±2; 4±3 4±2 17±6 19±10",
    "scene": "94±3 95±2 98±3 100±0; 12±3 50±13 0±0 76±9; 32±7 55±16 54±19 98±1; 0±1 3±3 0±0 5±1; 0±0 0±0 0±0 0±0",
    "puzzle-3x3": "33±6 97±4 94±3 90±4; 4±3 1±1 1±2 16±5; 3±2 3±1 0±0 10±3; 2±1 2±1 0±0 16±5; 3±2 5±3 0±0 16±3",
    "puzzle-4x4": "12±2 26±4 49±9 34±8; 7±4 12±4 4±4 16±5; 9±3 15±3 50±14 18±5; 5±2 10±3 21±11 11±3; 4±1 7±3 2±2 7±3",
}
"""Environment -> one entry per task of mean±std for each of the methods."""


def published_scores(env: str, task: int) -> dict[str, PublishedScore]:
    """Published success per method (iql, rebrac, ifql, fql) on a task.

    Raises:
        ConfigError: nobody published any that we know of; measured values then stand alone.

    """
    if env not in _PUBLISHED or not 1 <= task <= 5:
        raise ConfigError(f"there are no published scores for task {task} of {env}", expected=nearest(env, _PUBLISHED))
    row = _PUBLISHED[env].split("; ")[task - 1].split()
    numbers = [value.split("±") for value in row]
    return {name: PublishedScore(float(mean), float(std)) for name, (mean, std) in zip(_METHODS, numbers, strict=True)}
