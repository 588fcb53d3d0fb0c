"""Errors that say what happened, what was expected and how to fix it.

Every error a user can cause derives from :class:`FlowPolicyError`; the command line prints its
message without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlowPolicyError(Exception):
    """An error with a cause the user can act on.

    Args:
        what: what happened, naming the file, key or flag.
        expected: what would have been right.
        fix: what to do about it.

    """

    def __init__(self, what: str, *, expected: str = "", fix: str = "") -> None:
        self.what, self.expected, self.fix = what, expected, fix
        lines = [what]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class DataError(FlowPolicyError):
    """A dataset file is unreadable, inconsistent or does not hold what was asked for."""


class ContractError(FlowPolicyError):
    """A policy, a dataset, an environment or a robot disagree on what an action or observation is."""


class CheckpointError(FlowPolicyError):
    """A checkpoint is missing, altered or half written."""


class ConfigError(FlowPolicyError):
    """A preset, flag or combination of options that does not exist or cannot work."""


class SimulatorError(FlowPolicyError):
    """A simulator cannot be created or does not behave as its adapter says."""


class TrainingError(FlowPolicyError):
    """Training cannot go on, for instance because the loss is no longer finite."""


class EvaluationError(FlowPolicyError):
    """An evaluation cannot go on, or two evaluations cannot be compared."""


class ServingError(FlowPolicyError):
    """A policy server refused a request, was too late, or cannot be reached.

    Args:
        code: one word for programs, such as 'shape', 'nan', 'late', 'overloaded', 'lost'.
        what: what happened.
        expected: what would have been right.
        fix: what to do about it.

    """

    def __init__(self, code: str, what: str, *, expected: str = "", fix: str = "") -> None:
        super().__init__(what, expected=expected, fix=fix)
        self.code = code


class MissingExtraError(FlowPolicyError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package '{package}' is needed for this and is not installed",
            fix=f"pip install 'flowpolicy[{extra}]'",
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists what exists and suggests the nearest name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known)}"
