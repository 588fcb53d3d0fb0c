"""Code without the run-time checks of shapes: PyTorch's compiler cannot look through jaxtyping's wrappers."""

from __future__ import annotations

import contextlib
import sys
import types

import jaxtyping
import pytest


def _bare(value):
    """A function without its wrapper; None if it has none."""
    if isinstance(value, types.FunctionType) and value.__globals__["__name__"] == "jaxtyping._decorator":
        return value.__wrapped__
    if isinstance(value, property) and _bare(value.fget):
        return property(_bare(value.fget))
    if isinstance(value, classmethod | staticmethod) and _bare(value.__func__):
        return type(value)(_bare(value.__func__))
    return None


def _undecorated(*, typechecker):
    return lambda function: function


@contextlib.contextmanager
def uninstrumented():
    """No checks inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # for functions that other decorators hold
        patch.setattr(jaxtyping, "jaxtyped", _undecorated)  # for functions that are defined inside functions
        modules = [module for name, module in sys.modules.items() if name.startswith("flowpolicy.")]
        classes = {id(v): v for module in modules for v in vars(module).values() if isinstance(v, type)}
        for owner in (*modules, *classes.values()):
            for name, value in list(vars(owner).items()):
                if bare := _bare(value):
                    patch.setattr(owner, name, bare)
        yield
