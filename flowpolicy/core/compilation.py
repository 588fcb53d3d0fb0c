"""What ``torch.compile`` is given, functions that share nothing with other compiled ones, and what it complains of."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, or bound method, with a code object of its own.

    PyTorch keeps compiled graphs by code object and gives up at the ninth of one (``recompile_limit``), so that the
    ninth batch size of a network, or the ninth agent of a class in one process, would fail. A copy per graph needs no
    limit of PyTorch's to be raised, which would be raised for the whole program.
    """
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, types.FunctionType):
        return function
    code = plain.__code__.replace()
    copy = types.FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return types.MethodType(copy, function.__self__) if isinstance(function, types.MethodType) else copy


def from_compiler(error: Exception) -> bool:
    """Whether PyTorch's compiler raised this, and not the function that it was given."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def complaint(error: Exception) -> str:
    """The first line of what an error says, with the next one where it only announces that; never empty."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first
