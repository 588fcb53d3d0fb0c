"""The example notebooks run from top to bottom with this interpreter, and are kept without outputs."""

import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
import nbformat  # noqa: E402, comes with nbclient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_two_and_they_hold_no_outputs():
    assert [path.stem for path in NOTEBOOKS] == ["offline_rl", "one_step_policy"]
    for path in NOTEBOOKS:
        for cell in read(path).cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.timeout(900)  # training, on however busy a machine
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws_its_picture(path, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class ThisPython(AsyncKernelManager):
        """Starts the interpreter of the tests, whatever kernels are installed."""

        kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = read(path)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=800, km=ThisPython(), resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "toy.hdf5").exists()
