"""The wheel: one importable name, all of it, and nothing else."""

import configparser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_the_package_list_is_what_is_on_disk():
    outer = {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}
    found = set()
    for folder, package in outer.items():
        for file in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *file.parent.relative_to(ROOT / folder).parts]))
    assert set(SETUPTOOLS["packages"]) == found
    ours = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    assert ours == set(outer), "a folder beside flowpolicy/ is not mapped"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools writes build/ and *.egg-info beside what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*SETUPTOOLS["package-dir"].values(), "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_flowpolicy_and_no_tests(wheel):
    names = wheel.namelist()
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    assert {name.split("/")[0] for name in names} == {"flowpolicy", info}
    assert wheel.read(f"{info}/top_level.txt").split() == [b"flowpolicy"]
    assert not [name for name in names if "test" in name]
    assert {"flowpolicy/py.typed", "flowpolicy/envs/robosuite_step.c"} <= set(names)
    for package, folder in SETUPTOOLS["package-dir"].items():
        for file in (ROOT / folder).rglob("*.py"):
            assert f"{package.replace('.', '/')}/{file.relative_to(ROOT / folder).as_posix()}" in names


def test_the_wheel_installs_the_command(wheel):
    points = configparser.ConfigParser()
    points.read_string(
        wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))).decode()
    )
    assert dict(points["console_scripts"]) == {"flowpolicy": "flowpolicy.cli:main"}


def test_the_unpacked_wheel_is_importable_on_its_own(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    # Without site-packages' import hook of an editable installation, which would find the checkout instead.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "import flowpolicy.agents.cloning.dm1 as a, flowpolicy.envs as e, flowpolicy.configs.presets as c\n"
        "print(*(m.__file__ for m in (a, e, c)), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(tmp_path / "site")) for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 3
