"""What a policy may be asked: one check of observations, noise and actions for everything that acts.

No torch: engines and the robot's side do without it, and what is looked at arrays and tensors have in common.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ActionError, ConfigError
from flowpolicy.core.ranges import Range
from flowpolicy.core.spec import Spec

_EVALUATIONS = Range(1, 2**14)  # as on the command line


def require_observations(obs: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of rows of a batch of observations. Keys beside those of ``shapes`` are allowed.

    Args:
        obs: name -> (b, o, *shape).
        shapes: name -> (o, *shape).

    Raises:
        ConfigError: a key is missing, or holds no real numbers, or not of its shape and in as many rows as the others.

    """
    require_keys(obs, shapes)
    first = getattr(obs[next(iter(shapes))], "shape", ())
    rows = first[0] if first and first[0] else 1
    for key, shape in shapes.items():
        require_numbers(f"observation '{key}'", obs[key], (rows, *shape))
    return rows


def require_keys(obs: Any, wanted: Iterable[str]) -> None:
    """Raise ConfigError unless observations are a mapping that has the keys ``wanted``."""
    if not hasattr(obs, "keys"):
        raise ConfigError(
            f"observations of type {type(obs).__name__}",
            expected=f"name -> array or tensor (b, o, *shape), for {', '.join(wanted)}",
        )
    found = obs.keys()
    for key in wanted:
        if key not in found:
            raise ConfigError(
                f"observation '{key}' is missing",
                expected=", ".join(wanted),
                fix=f"given were: {', '.join(map(str, found))}",
            )


def require_numbers(what: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``value`` is an array or a tensor of real numbers and of exactly this shape."""
    found, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if found is None or dtype is None:
        raise ConfigError(f"{what} is of type {type(value).__name__}", expected=f"an array or a tensor {shape}")
    if found != shape:
        raise ConfigError(f"{what} has shape {tuple(found)}", expected=f"{shape}; nothing is repeated to fit")
    if not _real(dtype):
        raise ConfigError(f"{what} is of {dtype}", expected="real numbers, such as float32")


def followed(text: str, spec: Spec) -> str:
    """The instruction that a policy follows: ``text``, or the only one that it knows.

    Args:
        text: what is asked for; empty for nothing.
        spec: of the policy's contract.

    Returns:
        One of its texts; empty for a policy that takes none, and where several could be meant.

    Raises:
        ConfigError: the policy was trained on no such text, or on none.

    """
    words = next(iter(spec.instructions.values()), ())
    if not words and text:
        raise ConfigError(f"the instruction '{text}' to a policy that takes none", fix="leave it out")
    if text and text not in words:
        raise ConfigError(
            f"the policy knows no instruction '{text}'",
            expected=listed(words, text),
            fix="give one that it was trained on, letter by letter; it understands no others",
        )
    return text or (words[0] if len(words) == 1 else "")


def require_followed(text: str, spec: Spec) -> str:
    """Like :func:`followed`, and raises ConfigError where several instructions could be meant, too."""
    found = followed(text, spec)
    for words in spec.instructions.values() if not found else ():
        raise ConfigError(
            f"the policy follows {len(words)} instructions, and none is given",
            expected=listed(words),
            fix="name one of them: the option 'instruction' of the command; in Python instruction='TEXT'",
        )
    return found


def listed(words: Sequence[str], near: str = "") -> str:
    """Instructions for an error, those most like ``near`` first: at most 20 of them, and how many more there are."""
    first = difflib.get_close_matches(near, words, n=3, cutoff=0.3) if near else []
    every = [*first, *(word for word in words if word not in first)]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return "one of " + ", ".join(f"'{word}'" for word in every[:_SHOWN]) + more


_SHOWN = 20


def told(instruction: str, spec: Spec) -> dict[str, NDArray[np.float32]]:
    """What a policy sees of an instruction: observation -> one number for each text that it knows, 1 for this one.

    Args:
        instruction: the text; the only one that the policy knows unless given.
        spec: of the policy's contract.

    Returns:
        Nothing for a policy that takes no instruction, and where several could be meant.

    Raises:
        ConfigError: the policy was trained on no such text, or on none.

    """
    text = followed(instruction, spec)
    return {
        key: np.eye(len(words), dtype=np.float32)[words.index(text)] for key, words in spec.instructions.items() if text
    }


def require_told(key: str, value: Any) -> None:
    """Raise ConfigError unless every row of ``value`` (..., n) is one instruction: a single 1 among 0."""
    if bool(((value != 0) & (value != 1)).any()) or bool((value.sum(-1) != 1).any()):
        raise ConfigError(
            f"the observation '{key}' is no instruction",
            expected="1 for the text that is given and 0 for all others",
            fix="let Session(policy, instruction='...') make it of the text",
        )


def require_pixels(key: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is an array or a tensor of uint8: pictures as cameras give them."""
    if str(value.dtype).removeprefix("torch.") != "uint8":
        raise ConfigError(
            f"the pictures '{key}' are of {value.dtype}",
            expected="uint8, 0 to 255, red green blue, rows from the top down",
            fix="give them as the camera does: nothing scaled, nothing normalised",
        )


def require_finite(what: str, value: Any) -> None:
    """Raise ConfigError where an array or a tensor holds NaN or infinity."""
    if math.isfinite(value.sum()):  # one pass; only where finite numbers have too large a sum it takes another
        return
    count = math.prod(value.shape)
    wrong = count - int((abs(value) < math.inf).sum())
    if wrong:
        raise ConfigError(
            f"{what} holds NaN or infinity, or more than float32 can say ({wrong} of {count} numbers)",
            expected="finite numbers",
            fix="look at what measured or computed them: a policy would make an action of them",
        )


def require_chunks(chunks: Any, shape: tuple[int, ...]) -> None:
    """Raise ActionError unless what a policy gave is of this shape and finite."""
    if tuple(chunks.shape) != shape:
        raise ActionError(f"the policy gave a chunk of shape {tuple(chunks.shape)}", expected=str(shape))
    if not math.isfinite(chunks.sum()) and not bool((abs(chunks) < math.inf).all()):
        raise ActionError(
            "the policy's action holds NaN or infinity",
            fix="look at the training curves for a loss that blew up, or use an earlier checkpoint",
        )


def require_committed(action: Any, length: Any, shape: tuple[int, ...], prefix: int) -> None:
    """Raise ConfigError unless a policy can continue these actions.

    Args:
        action: actions that are executed while the policy computes; rows from ``length`` on mean nothing.
        length: how many of each row are committed.
        shape: of ``action``: (b, h, a).
        prefix: the most that the policy was trained to continue.

    """
    require_numbers("the committed actions", action, shape)
    require_numbers("the number of committed actions", length, shape[:1])
    shortest, longest = int(length.min()), int(length.max())
    if longest > prefix:
        raise ConfigError(
            f"{longest} actions are committed and the policy was trained to continue {prefix}",
            expected=f"at most {prefix}",
            fix=f"train with --agent.prefix {longest}, or compute faster",
        )
    if shortest < 0:
        raise ConfigError(f"{shortest} actions are committed", expected="0 or more")
    if not math.isfinite(action.sum()):
        for row, count in enumerate(length):
            require_finite("the committed actions", action[row, : int(count)])


def require_nfe(nfe: Any) -> None:
    """Raise ConfigError unless ``nfe`` is a number of network evaluations."""
    if not hasattr(nfe, "__index__") or isinstance(nfe, bool) or nfe not in _EVALUATIONS:
        raise ConfigError(f"nfe={nfe!r}", expected=f"a whole number, {_EVALUATIONS}")


@functools.cache
def _real(dtype: Any) -> bool:
    """Whether a dtype of NumPy or torch has real numbers; truth values count as 0 and 1."""
    kind = getattr(dtype, "kind", None)
    return kind in "biuf" if kind else not dtype.is_complex
