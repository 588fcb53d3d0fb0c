"""Losses compiled into one graph, and what is said where a loss cannot be compiled or was compiled with a mistake.

A compiled graph holds the Python values that its loss read while it was traced. PyTorch guards them: a loss that reads
``self.updates`` is traced anew when that number has changed, seconds for every update. Here such a loss is refused by
name, whenever the number first changes. What changes from update to update must be an argument of the loss, a tensor
among its draws.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flowpolicy.core.compilation import complaint, from_compiler, own_code
from flowpolicy.core.errors import TrainingError

REALIZE = 8
"""Operations after which a value that is used twice is stored. With the compiler's own threshold (30), activations
under a normalisation are computed for the mean, for the variance and for the result: 6 to 11 % of an FQL update."""
BACKEND = "inductor"
"""What makes programs of the graphs; tests that only need the graphs take 'aot_eager', which is faster to compile."""
TOLERANCE = 0.01
"""Largest difference of a compiled loss from the eager one, in units of its largest part. Rounding makes some 1e-6."""

SIGNATURES = 64
"""Most graphs of one loss. Each takes tens of seconds to compile: more are batches whose size keeps changing."""

UNCOMPILED = "train uncompiled: --no-compile"
_FIX_NUMBER = (
    "draw it: return torch.tensor(number) from `draw` or `draws`, and take it as an argument of the loss; "
    f"or {UNCOMPILED}"
)
_FIX_SHAPE = (
    "torch.where(condition, a, b), or a product with the mask, in the place of `if`, of indexing by a mask, of slices "
    f"by a counted length and of .item(); or {UNCOMPILED}"
)


class CompiledLoss:
    """A loss and its gradient, compiled into one graph per signature of its arguments.

    The first call of a signature (shapes, dtypes, further values) compares the compiled loss with the eager one. A call
    of a known signature that would have to be compiled again because a Python number has changed is refused.

    Args:
        loss: pure function of tensors, of containers of tensors and of hashable values that returns a pair, the loss
            first. What else it reads, such as the networks and options of an agent, must stay as it is.
        device: where it runs.

    Raises:
        TrainingError: when called: the loss cannot be compiled, or not be trusted when it is.

    """

    def __init__(self, loss: Callable[..., Any], device: torch.device | str) -> None:
        own = BACKEND == "inductor" and torch.device(device).type == "cpu"
        options: dict[str, Any] = {"options": {"realize_opcount_threshold": REALIZE}} if own else {}
        self._eager, self._name, self._options = loss, _name(loss), options
        self._known: dict[Any, tuple[Callable[..., Any], list[float]]] = {}

    def __call__(self, *arguments: Any, **switches: Any) -> Any:
        """What the loss returns."""
        numbers: list[float] = []
        signature = (torch.is_grad_enabled(), _signature(arguments, numbers), _signature(switches, numbers))
        if signature not in self._known:
            compiled = self._new()
            with explained(self._name):
                result = compiled(*arguments, **switches)
            self._require_equal(result[0], *_drawing(self._eager, *arguments, **switches))
            self._known[signature] = compiled, numbers
            return result
        compiled, known = self._known[signature]
        if numbers != known:
            raise TrainingError(
                f"{self._name} is given a Python number that changes: {known} was {numbers} before",
                expected="tensors: a compiled loss holds the Python numbers that it was compiled with",
                fix=_FIX_NUMBER,
            )
        try:
            with explained(self._name), torch.compiler.set_stance("fail_on_recompile"):
                return compiled(*arguments, **switches)
        except _RecompileError as found:
            found.require_harmless(self._name)
        with explained(self._name):
            return compiled(*arguments, **switches)

    def _new(self) -> Callable[..., Any]:
        """What will be compiled at its first call."""
        if len(self._known) == SIGNATURES:
            raise TrainingError(
                f"{self._name} has been compiled for {SIGNATURES} different shapes of its arguments",
                expected="batches of few sizes",
                fix=f"let every batch have the same size; or {UNCOMPILED}",
            )
        return torch.compile(own_code(self._eager), dynamic=False, fullgraph=True, backend=BACKEND, **self._options)

    def _require_equal(self, compiled: Tensor, eager: tuple[Tensor, dict[str, Any]], draws: bool) -> None:
        parts = [value.detach().abs().max() for value in (eager[0], *eager[1].values()) if isinstance(value, Tensor)]
        scale = torch.stack([part.to(compiled.device, compiled.dtype) for part in parts]).amax()
        difference = (compiled.detach() - eager[0].detach()).abs()
        if draws or bool(difference > TOLERANCE * scale):  # what is not finite is the trainer's business
            raise TrainingError(
                f"{self._name} is {compiled.item():.6g} when compiled and {eager[0].item():.6g} when not, for the same "
                f"arguments" + (": it draws random numbers itself" if draws else ""),
                expected="a function of its arguments, which draws nothing and changes nothing itself",
                fix=f"draw random numbers in `draw` or `draws`, with the given generator; or {UNCOMPILED}",
            )


class _RecompileError(Exception):
    """PyTorch would have to compile a loss again: its own words."""

    def require_harmless(self, name: str) -> None:
        """Raise TrainingError if it is for a number that has changed; other values are few, and may be compiled."""
        place = ""
        for line in reversed(str(self).splitlines()):
            if found := re.match(r'\s*-\s+File "(.+)", line (\d+), in (\S+)', line):
                place = place or f", read by {found[3]} ({found[1]}:{found[2]})"
            elif found := re.match(r"\s*- \d+/\d+: (.*?)(?:\s+#.*)?$", line):
                if _is_number(found[1]):
                    what, _, then = found[1].partition(" == ")
                    raise TrainingError(
                        f"{name} reads a Python number that changes: {what} was {then} when it was compiled{place}",
                        expected="a compiled loss holds the Python numbers that it was compiled with",
                        fix=_FIX_NUMBER,
                    ) from None
                place = ""


def _is_number(guard: str) -> bool:
    """Whether a broken guard is one of a number or of a length."""
    try:
        value = ast.literal_eval(guard.rpartition(" == ")[2])
    except (SyntaxError, ValueError):
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what PyTorch says about a loss into an error that names the cause and the mend.

    Args:
        name: of the loss.

    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if text.startswith("Detected recompile"):
            raise _RecompileError(text) from None
        if not from_compiler(error):
            raise
        places = re.findall(r'File "([^"\n]+)", line (\d+), in (\S+?),?\n\s+([^\n]+)', text)
        place = "" if not places else "{2} ({0}:{1}), `{3}`".format(*places[-1])
        if "RecompileLimit" in type(error).__name__:
            raise TrainingError(
                f"{name} has been compiled so often that PyTorch gives up: Python values that it reads keep changing",
                expected="tensors for what changes",
                fix=_FIX_NUMBER,
            ) from error
        if "data-dependent" in text.lower():
            raise TrainingError(
                f"{name} cannot be compiled: its course or the shape of a tensor depends on the values of tensors"
                + (f": {place}" if place else ""),
                expected="the same operations on the same shapes in every update",
                fix=_FIX_SHAPE,
            ) from error
        raise TrainingError(
            f"{name} cannot be compiled" + (f": {place}" if place else "") + f": {complaint(error)}",
            expected="operations of PyTorch",
            fix=f"rewrite that line, or {UNCOMPILED}",
        ) from error


def _drawing(loss: Callable[..., Any], *arguments: Any, **switches: Any) -> tuple[Any, bool]:
    """What the loss returns, and whether it has drawn random numbers from PyTorch's own generators."""
    generators = (torch.default_generator, *torch.cuda.default_generators)
    before = [generator.get_state() for generator in generators]
    result = loss(*arguments, **switches)
    after = [generator.get_state() for generator in generators]
    return result, not all(map(torch.equal, before, after))


def _name(loss: Callable[..., Any]) -> str:
    owner = getattr(loss, "__self__", None)
    return f"the loss of {type(owner).__name__}" if owner is not None else getattr(loss, "__name__", "the loss")


def _signature(value: Any, numbers: list[float]) -> Any:
    """What a graph is made for; the Python numbers of ``value`` are appended to ``numbers``."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, dict):
        return tuple((name, _signature(each, numbers)) for name, each in value.items())
    if isinstance(value, tuple | list):
        return tuple(_signature(each, numbers) for each in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        numbers.append(value)
        return type(value)
    return value
