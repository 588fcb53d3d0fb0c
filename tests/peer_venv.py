"""Virtual environments for the field's own packages that cannot be installed beside ours.

Each holds its packages without their dependencies and sees ours after its own, through a .pth file.
"""

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


def peer_python(name: str, *packages: str) -> Path:
    """Python of the environment ``.venv-<name>`` with ``packages``, built when it is not there yet.

    ``FLOWPOLICY_PEER_VENV`` names another folder for these environments. Where one cannot be built the test
    is skipped, and fails when ``CI=true``.
    """
    parent = Path(os.environ.get("FLOWPOLICY_PEER_VENV", Path(__file__).parents[1]))
    root = parent / f".venv-{name}"
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes ask for it at once
        try:
            return _build(root, packages)
        except subprocess.CalledProcessError as error:
            reason = f"the environment with {', '.join(packages)} cannot be built: {error.stderr}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def _build(root: Path, packages: tuple[str, ...]) -> Path:
    python, complete = root / "bin" / "python", root / "complete.txt"
    if not complete.exists() or complete.read_text() != "\n".join(packages):
        run(sys.executable, "-m", "venv", "--clear", str(root))
        run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages)
        (site,) = root.glob("lib/python*/site-packages")
        (site / "zz_host.pth").write_text(sysconfig.get_path("purelib"))
        complete.write_text("\n".join(packages))
    return python
