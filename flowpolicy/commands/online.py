"""``flowpolicy online RUN``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from flowpolicy.core.errors import ConfigError

USAGE = """usage: flowpolicy online RUN --steps N --out OUT [OPTIONS]

Continue an agent that was trained on a file with steps in its environment: between the updates it acts, keeps whole
episodes, and trains on batches of which a share (--online.ratio, half unless given) is its own experience. RUN is not
changed. OUT/episodes.csv and OUT/online.png tell how the episodes went; 'flowpolicy resume OUT' continues bit for bit.

RUN's options hold unless a flag of 'flowpolicy train' overrides them; 'flowpolicy online RUN --help' lists all, such as
  --steps N                    gradient updates, one per environment step
  --online.ratio SHARE         share of a batch that comes from the collected episodes
  --online.updates-per-step N  gradient updates per environment step
  --online.noise STD           exploration noise, for agents whose own policy is deterministic (iql, rebrac)
  --agent.alpha A              most agents want a weaker pull to the data online than offline
"""


def run(argv: Sequence[str]) -> int:
    """Continue a run with environment steps."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    from flowpolicy.commands.train import parse, report
    from flowpolicy.train.run import Run
    from flowpolicy.train.training import train

    base = Run.load(argv[0])
    stored = base.experiment
    online = dataclasses.replace(stored.online, base=str(base.checkpoint.absolute()))
    command = parse(
        dataclasses.replace(stored, online=online, compile="auto"),
        argv[1:],
        f"online {argv[0]}",
        "Continue a run online.",
    )
    if command.seeds > 1 or command.sweep:
        raise ConfigError(
            "--seeds and --sweep are not for online training: every run steps in an environment of its own",
            fix="flowpolicy online RUN --seed S --out OUT, one after the other",
        )
    if not command.out:
        raise ConfigError("no folder for the new run is given", expected="--out OUT")
    if command.data.path == stored.data.path:
        base.data()
    report(train(command.experiment, command.out))
    return 0
