"""C code of ours that calls MuJoCo: compiled at first use against the headers of the installed wheel, then kept.

A binary belongs to one source, one MuJoCo and one machine type, and is whole or absent in the cache folder. Processes
that need it at once wait for the one that builds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from flowpolicy.core.errors import SimulatorError
from flowpolicy.core.files import replacing

# No fused multiply-add: the same source gives the same bits on every machine of a type.
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")


def load_extension(source: Path) -> ctypes.CDLL:
    """The library of a C file, built if it has not been.

    Raises:
        SimulatorError: it cannot be built or loaded here; says in one sentence why.

    """
    import mujoco

    home = Path(mujoco.__file__).parent
    libraries = sorted([*home.glob("libmujoco.so*"), *home.glob("libmujoco*.dylib")])
    if not libraries or not (home / "include" / "mujoco" / "mujoco.h").exists():
        raise SimulatorError(f"MuJoCo's headers and library are not in {home}", fix="pip install mujoco")
    text = source.read_bytes()
    facts = (mujoco.__version__, platform.machine(), *platform.libc_ver(), *_FLAGS)
    key = hashlib.sha256(b"\0".join([text, *map(str.encode, facts)])).hexdigest()[:16]
    binary = cache_folder() / f"{source.stem}-{key}.so"
    try:
        if not binary.exists():
            _build(source, binary, ("-I", str(home / "include"), str(libraries[-1])))
        return ctypes.CDLL(str(binary))
    except OSError as error:
        raise SimulatorError(f"{binary} cannot be written or loaded: {error}", fix="set XDG_CACHE_HOME") from error


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/flowpolicy/compiled``, or the same under ``~/.cache``."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "flowpolicy" / "compiled"


def _build(source: Path, binary: Path, with_mujoco: tuple[str, ...]) -> None:
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SimulatorError("no C compiler is installed", fix="apt-get install gcc libc6-dev")
    with _alone(binary.parent):
        if binary.exists():  # by the process that held the folder
            return
        with replacing(binary) as target:
            command = [compiler, *_FLAGS, str(source), *with_mujoco, "-o", str(target)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            except subprocess.TimeoutExpired as error:
                raise SimulatorError(f"{compiler} takes more than two minutes for {source.name}") from error
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["nothing said"]
                raise SimulatorError(f"{compiler} cannot compile {source.name}: {said[0]}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process builds here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
