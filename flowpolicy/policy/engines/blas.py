"""The number of threads of NumPy's matrix products, which NumPy itself cannot set."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from flowpolicy.core.errors import ConfigError

_SYMBOLS = [f"{prefix}openblas_%s_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]


def set_blas_threads(threads: int) -> None:
    """Let NumPy's OpenBLAS use ``threads`` threads in this process.

    Two threads that wait for each other cost a small product a hundred times its own duration on a busy machine, so
    an engine never leaves this to chance.

    Raises:
        ConfigError: NumPy was built with another library, whose threads only the environment can limit.

    """
    site = Path(np.__file__).parent
    for path in [*site.parent.glob("numpy.libs/*openblas*"), *site.glob(".dylibs/*openblas*")]:
        library = ctypes.CDLL(str(path))
        for symbol in _SYMBOLS:
            if hasattr(library, symbol % "set"):
                getattr(library, symbol % "set")(threads)
                if getattr(library, symbol % "get")() == threads:
                    return
    raise ConfigError(
        f"cannot give NumPy's matrix products {threads} threads",
        expected="NumPy's own wheel, which brings OpenBLAS",
        fix="pip install --force-reinstall numpy",
    )
