"""Exports are whole, checked against the policy, load without torch, and are refused when anything was changed."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import CheckpointError, ConfigError, FlowPolicyError
from flowpolicy.core.files import read_json, sha256, write_json
from flowpolicy.policy import exporting as exporting
from flowpolicy.policy import load_engine
from flowpolicy.policy.exporting import export
from flowpolicy.policy.package import open_package

from .engines.policies import decisions, eager, make

WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None  # importing it fails
import numpy as np
from flowpolicy.policy import load_engine

engine = load_engine(sys.argv[1])
with np.load(sys.argv[2]) as inputs:
    obs = {key: inputs[key] for key in engine.contract.spec.observation}
    np.save(sys.argv[3], engine.act(obs, inputs["noise"]))
print(engine.name, engine.contract.spec.env_id)
"""


@pytest.fixture
def package(contract, tmp_path):
    export(make(contract), "numpy", tmp_path / "model", source="a test")
    return tmp_path / "model"


def reseal(folder):
    """What an attacker, or a careless hand, could do: change files and hashes alike."""
    (folder / "manifest.json").unlink()
    write_json(folder / "manifest.json", {path.name: sha256(path) for path in sorted(folder.iterdir())})


FORMATS = ["numpy", *(["onnx"] if importlib.util.find_spec("onnxruntime") else [])]


@pytest.mark.parametrize("form", FORMATS)
def test_a_computer_without_torch_acts_alike(form, contract, tmp_path):
    policy = make(contract)
    export(policy, form, tmp_path / "model")
    obs, noise = next(decisions(policy, 1))
    np.savez(tmp_path / "in.npz", noise=noise, **obs)
    command = [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "model", tmp_path / "in.npz", tmp_path / "out.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{form} test/Point\n"
    assert np.allclose(np.load(tmp_path / "out.npy"), eager(policy, obs, noise), atol=1e-5)


def test_the_folder_says_what_it_is(package, contract):
    assert {path.name for path in package.iterdir()} == {
        "card.md", "contract.json", "engine.json", "manifest.json", "batch_1.safetensors"
    }  # fmt: skip
    opened = open_package(package)
    assert opened.contract == contract
    header = read_json(package / "engine.json")
    assert 0 < header["difference"] < header["tolerance"]
    card = (package / "card.md").read_text()
    for words in ("a test", "`obs` (b, 2, 5)", "| goal | (2,) | m |", "0.1 m per unit", "20 Hz"):
        assert words in card
    assert read_json(package / "manifest.json") == {
        path.name: checkpoint.sha256(path) for path in package.iterdir() if path.name != "manifest.json"
    }


@pytest.mark.parametrize("name", ["card.md", "contract.json", "engine.json", "batch_1.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "edited", "missing"])
def test_a_damaged_file_is_refused(name, damage, package):
    path = package / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + b"~")
    with pytest.raises(CheckpointError, match=r"missing|altered"):
        load_engine(package, "numpy")


@pytest.mark.parametrize(
    "foreign", [b"", b"PK\x03\x04 a pickle in a zip", b"\x80\x04\x95", b'{"a": {"dtype": "F32"}}' + b"0" * 64]
)
def test_a_foreign_model_under_right_hashes_is_refused(foreign, package):
    (package / "batch_1.safetensors").write_bytes(foreign)
    reseal(package)
    with pytest.raises(CheckpointError, match="holds no model"):
        load_engine(package, "numpy")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", 4, "unknown schema version"),
        ("nfe", None, "does not describe a model"),
        ("noise", {"entries": "cauchy", "scale": 1.0, "dof": None}, "does not describe a model"),
        ("files", {"1": "../elsewhere.safetensors"}, "the manifest does not"),
    ],
)
def test_a_description_that_is_not_ours_is_refused(field, value, message, package):
    header = read_json(package / "engine.json")
    if value is None:
        del header[field]
    else:
        header[field] = value
    write_json(package / "engine.json", header)
    reseal(package)
    with pytest.raises(CheckpointError, match=message):
        load_engine(package, "numpy")


def test_a_manifest_that_leaves_the_folder_is_refused(package):
    write_json(package / "manifest.json", {"../outside": "0"})
    with pytest.raises(CheckpointError, match="no manifest of an export"):
        open_package(package)


@pytest.mark.skipif("onnx" not in FORMATS, reason="the extra 'onnx' is not installed")
@pytest.mark.slow
def test_a_foreign_onnx_model_is_refused(contract, tmp_path):
    export(make(contract), "onnx", tmp_path / "model")
    original = (tmp_path / "model" / "batch_1.onnx").read_bytes()
    for content, message in ((original[:-200], "no ONNX model"), (b"", "no ONNX model")):
        (tmp_path / "model" / "batch_1.onnx").write_bytes(content)
        reseal(tmp_path / "model")
        with pytest.raises(CheckpointError, match=message):
            load_engine(tmp_path / "model", "onnx")
    header = json.loads((tmp_path / "model" / "contract.json").read_text())
    header["chunk"] += 1  # a model of another contract
    write_json(tmp_path / "model" / "contract.json", header)
    (tmp_path / "model" / "batch_1.onnx").write_bytes(original)
    reseal(tmp_path / "model")
    with pytest.raises(CheckpointError, match="other inputs and outputs"):
        load_engine(tmp_path / "model", "onnx")


def test_an_export_is_for_its_engine_and_its_evaluations(package):
    with pytest.raises(ConfigError, match="export for 'numpy', which 'onnx' cannot run"):
        load_engine(package, "onnx")
    with pytest.raises(ConfigError, match="is an export for"):
        load_engine(package, "eager")
    with pytest.raises(ConfigError, match="export again: --nfe 4"):
        load_engine(package, "numpy", nfe=4)
    assert load_engine(package).name == "numpy"


def test_a_model_that_computes_something_else_is_never_published(contract, tmp_path, monkeypatch):
    record = exporting.numpy_graph.record

    def wrong(graph, batch, path):
        graph.offset.add_(0.01)
        record(graph, batch, path)

    monkeypatch.setattr(exporting.numpy_graph, "record", wrong)
    with pytest.raises(FlowPolicyError, match="differs from the policy by"):
        export(make(contract), "numpy", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_export_is_replaced_whole_and_nothing_else_is(package, contract, tmp_path):
    before = sha256(package / "batch_1.safetensors")
    with pytest.raises(FlowPolicyError, match="add --overwrite"):
        export(make(contract, "plain"), "numpy", package)
    (package / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files of yours: notes\.txt"):
        export(make(contract, "plain"), "numpy", package, overwrite=True)
    (package / "notes.txt").unlink()
    export(make(contract, "plain"), "numpy", package, overwrite=True)
    export(make(contract, "plain"), "numpy", package)  # the very same files
    assert sha256(package / "batch_1.safetensors") != before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty and no export"):
        export(make(contract), "numpy", tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()


@pytest.mark.parametrize("batches", [(), (0, 1)])
def test_batch_sizes_are_positive(batches, contract, tmp_path):
    with pytest.raises(ConfigError, match="batch sizes"):
        export(make(contract), "numpy", tmp_path / "model", batches=batches)
