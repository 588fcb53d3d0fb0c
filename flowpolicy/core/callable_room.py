"""Packages that can be called: ``flowpolicy.train(experiment)`` beside ``flowpolicy.train.Trainer``.

Importing any part of a package binds the package's name in its parent: ``import flowpolicy.train.kinds`` would put the
package in the place of a function ``flowpolicy.train``. So that both spellings mean what they say, in whatever order,
the package itself is called. Type checkers and editors see the function (``flowpolicy/__init__.py``).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package under the name of its main function, which importing any part of the package would hide otherwise."""

    MAIN: str
    """Where the function is, as ``module:name``; imported when it is called."""

    @property
    def function(self) -> Any:
        """What a call calls."""
        module, _, name = self.MAIN.partition(":")
        return getattr(import_module(module), name)

    @property
    def __signature__(self) -> Any:
        """Of the function, for ``help`` and notebooks."""
        import inspect

        return inspect.signature(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def make_callable(package: str, main: str) -> None:
    """Let a call of the imported ``package`` call the function ``main``, given as ``module:name``."""
    module = sys.modules[package]
    module.__class__ = CallableRoom
    module.MAIN = main  # type: ignore[attr-defined]
