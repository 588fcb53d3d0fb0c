"""What a group file is asked to hold; :mod:`flowpolicy.train.group_sources` makes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Count, Few, Natural, NonNegative, Seed, Share, Workers, require_ranges


@dataclasses.dataclass(frozen=True)
class Making:
    """What is scored, and how."""

    source: Literal["critic", "simulator", "returns"]
    """Critic: values of a value-learning run, offline. Simulator: every candidate is executed from its stored state
    and the base finishes; report such results apart. Returns: what followed similar states in the data, offline."""
    out: Path
    """File to write."""
    states: Count = 1000
    """States of the dataset that get candidates."""
    span: tuple[Share, Share] = (0.0, 1.0)
    """Part of every episode that the states are taken from, as fractions of its length. Where chunks decide little,
    labels say little: 0 0.3 for a pick that is decided before the grasp."""
    candidates: Few = 8
    """Chunks per state, the data's among them; at least 4."""
    seed: Seed = 0
    """Same seed, same file content, whatever the number of workers."""
    held_out_share: Share = 0.2
    """Share of the episodes whose states are not trained on; there the result is judged."""
    data: Path | None = None
    """Dataset file; that of the run unless given."""
    nfe: Few | None = None
    """Network evaluations per candidate; the run's unless given."""
    candidate_noise: tuple[NonNegative, NonNegative] = (1.0, 1.0)
    """Scale of the noise that the base's candidates start from, first to last in even steps: 1 1 samples the
    base's law, 0 1 ranges from zero noise to all of it. Where a policy fails by its own noise, 0 1 shows it."""
    critic: Path | None = None
    """Source critic: run of fql, ifql, iql, qc, rebrac, fisher or mean-flow-q on the same data."""
    held_out: Path | None = None
    """Source critic: another such run (other seed, other half of the episodes) that judges; without it the networks
    that the critic itself held out (--agent.critic.held-out)."""
    caution: NonNegative = 1.0
    """Deviations of the ensemble that are subtracted from its mean."""
    rollouts: Few = 2
    """Source simulator: completions per candidate."""
    limit: Natural = 0
    """Source simulator: steps from the state after which a rollout has failed (0: the horizon's). Too small
    a limit calls slow successes failures."""
    completion_noise: NonNegative | Literal["own"] = 1.0
    """Source simulator: scale of the base's noise while it finishes. At 0 nothing but the candidate differs between the
    rollouts of a group. 'own' goes on at the scale that the candidate started from: where one chunk decides little, it
    then stands for a way to act, and the label says how acting that way ends."""
    discount: Share = 0.99
    """Source returns: discount of the rewards to go."""
    workers: Workers | None = None
    """Source simulator: processes; one per core unless given."""
    overwrite: bool = False
    """Replace an existing file at --out."""
    device: str = "cpu"
    """Where the base generates its candidates: cpu or a CUDA device. Rollouts of the simulator stay on the CPU."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.candidates < 4 or self.states < 2:
            raise ConfigError(
                f"--candidates {self.candidates} --states {self.states}",
                expected="at least 4 candidates (pairs collapse) and 2 states",
            )
        if self.source == "returns" and self.candidate_noise != (1.0, 1.0):
            raise ConfigError("--candidate-noise has no meaning: the candidates of returns come from the data")
        if self.completion_noise == 0 and self.rollouts > 1:
            raise ConfigError(
                f"--completion-noise 0 makes the {self.rollouts} rollouts of a candidate the same",
                fix="add --rollouts 1",
            )
        if self.source == "critic" and self.critic is None:
            raise ConfigError(
                "--source critic needs a trained critic",
                expected="--critic RUN",
                fix="train one on the same file, e.g. flowpolicy train iql-* --agent.critic.held-out 2",
            )

    @property
    def labels(self) -> Path:
        """Where the labels of the simulator are kept as they come; stopped, making goes on after the last one."""
        return self.out.with_name(f"{self.out.name}.labels")
