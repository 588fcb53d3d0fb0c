"""Errors that say what happened, what was expected and how to fix it.

Every error a user can cause derives from :class:`FlowPolicyError`; the command line prints its
message without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
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


class DataWarning(UserWarning):
    """Something about a dataset that its user should know and may have meant."""


class ContractError(FlowPolicyError):
    """A policy, a dataset, an environment or a robot disagree on what an action or observation is."""


class CheckpointError(FlowPolicyError):
    """A checkpoint is missing, altered or half written."""


class ConfigError(FlowPolicyError):
    """A preset, flag or combination of options that does not exist or cannot work."""


class SimulatorError(FlowPolicyError):
    """A simulator cannot be created or does not behave as its adapter says."""


class ActionError(FlowPolicyError):
    """A policy gave what is no action: NaN, infinity, another shape, or nothing in time."""


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


class StoreError(FlowPolicyError):
    """An object store cannot be reached, refused a request, or holds something else than was said.

    Args:
        what: what happened.
        expected: what would have been right.
        fix: what to do about it.
        lasting: whether the same request would be refused again.

    """

    def __init__(self, what: str, *, expected: str = "", fix: str = "", lasting: bool = False) -> None:
        super().__init__(what, expected=expected, fix=fix)
        self.lasting = lasting


class StoreWarning(UserWarning):
    """Something about an object store that its user should know and that stops nothing."""


class MissingExtraError(FlowPolicyError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package '{package}' is needed for this and is not installed",
            fix=f"pip install 'flowpolicy[{extra}]'",
        )


_REMEDIES = {
    errno.ENOSPC: "free some space and run the command again",
    errno.EDQUOT: "free some space (the quota is used up) and run the command again",
    errno.EACCES: "name a place where you may read and write, or change its permissions",
    errno.EPERM: "name a place where you may read and write, or change its permissions",
    errno.EROFS: "name a folder on a disk that can be written",
    errno.EISDIR: "name a file; a folder stands there",
    errno.ENOTDIR: "a file stands where a folder is needed: name another place, or move the file away",
    errno.EEXIST: "name another place, or move away what stands there",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "close other programs, or raise the limit: ulimit -n 4096",
    errno.EADDRINUSE: "choose another --port, or end the program that listens there",
    errno.EADDRNOTAVAIL: "name an address of this machine, or 127.0.0.1",
    errno.ECONNREFUSED: "start the server first, or check address and port",
    errno.ENOMEM: "close other programs, or make the work smaller",
}
"""What to do about an error of the operating system."""


def from_system(error: BaseException) -> FlowPolicyError | None:
    """What the operating system refused, as an error with a path, a reason and a remedy; None for any other error.

    Args:
        error: an ``OSError``, or what Python, PyTorch and HDF5 raise in its place.

    """
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(text)):
        return FlowPolicyError(
            f"not enough memory{': ' + text.splitlines()[0][:160] if text else ''}",
            fix="make the work smaller (--batch-size, --agent.net.width, fewer episodes), or close other programs",
        )
    if not isinstance(error, OSError):
        return None
    hidden = re.search(r"errno = (\d+)", text)  # HDF5 writes the number into its text
    number = error.errno or (int(hidden[1]) if hidden else 0)
    if not number or number == errno.EPIPE:
        return None
    place = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
    reason = os.strerror(number).lower() if number > 0 else text  # getaddrinfo counts downwards
    return FlowPolicyError(
        f"{place}: {reason}" if place else text, fix=_REMEDIES.get(number, "check the path, the address and its rights")
    )


_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|not enough memory", re.I)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists what exists and suggests the nearest name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known)}"
