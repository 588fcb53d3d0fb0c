"""Some mutations of every format, and what longer runs (``python -m tests.fuzz FORMAT``) once found."""

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from flowpolicy.agents.groups.group_file import read_groups
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.train.run import Run

from .damage import findings, good_files
from .formats import FORMATS, PACKAGE, read_dataset, seal

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused_in_words(name, tmp_path):
    assert list(findings(name, 50, 1, tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "read"),
    [
        # What HDF5 raises where bytes of a RoboMimic file are not what they were: KeyError, RuntimeError, OSError.
        ("robomimic_address_beyond_the_file", read_dataset),
        ("robomimic_address_overflow", read_dataset),
        ("robomimic_space_larger_than_its_maximum", read_dataset),
        ("robomimic_heap_of_another_version", read_dataset),
        ("d4rl_name_that_is_no_text", read_dataset),
        # An attribute that is neither text nor a list: HDF5 2.0 ends the process when it is read.
        ("groups_attribute_of_no_kind", read_groups),
        # An empty entry in a heap of text: HDF5 2.0 stays there for ever.
        ("groups_heap_without_end", read_groups),
    ],
)
def test_bytes_that_once_went_wrong_are_refused(name, read, tmp_path):
    path = tmp_path / "damaged.hdf5"
    path.write_bytes(gzip.decompress((FOUND / f"{name}.hdf5.gz").read_bytes()))
    with pytest.raises(FlowPolicyError, match=r"damaged|neither text nor numbers"):
        read(path)


@pytest.mark.parametrize(("name", "key"), [("d4rl", "actions"), ("robomimic", "data/demo_0/actions")])
def test_the_description_of_a_type_is_no_array(name, key, tmp_path):
    path = tmp_path / "file.hdf5"
    FORMATS[name].write(path)
    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = np.dtype("f4")
    with pytest.raises(FlowPolicyError, match="actions is"):
        read_dataset(path)


def edited(name, edit, folder, file):
    """A good one whose JSON file ``file`` was edited, and its hashes with it."""
    form = FORMATS[name]
    for each, content in good_files(form, folder).items():
        (folder / each).write_bytes(content)
    value = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(edit(value)))
    if form.folder and file != "manifest.json":
        seal(folder)
    return folder if form.folder else folder / file


def put(*place, value):
    """An edit that sets what stands at a place."""

    def edit(whole):
        node = whole
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        return whole

    return edit


@pytest.mark.parametrize(
    ("name", "file", "edit", "said"),
    [
        ("contract", "file.json", put("spec", "observation", "object", "class", value=[1, "x"]), "unknown kind"),
        ("contract", "file.json", put("spec", "observation", "object", value=True), "observation is"),
        ("config", "config.json", lambda value: [], "no JSON object"),
        ("config", "config.json", put("policy", "net", value={}), "net is"),
        ("config", "config.json", put("policy", "net", "width", value=-1), "policy.net.width is -1"),
        ("config", "config.json", put("policy", "encoder", "width", value=2**70), "policy.encoder.width is"),
        ("config", "config.json", put("policy", value=None), "holds no policy"),
        ("manifest", "manifest.json", lambda value: [value], "no JSON object"),
        ("manifest", "manifest.json", put("ema.safetensors", value=None), "was altered"),
        ("package", "engine.json", put("candidates", value={"class": "x"}), "candidates is"),
        ("package", "engine.json", put("files", value=0), "files is 0"),
        ("package", "engine.json", put("noise", "dof", value=0), "noise is"),
        ("package", "contract.json", put("history", value=3), "no model of its own description"),
    ],
)
def test_edits_that_once_went_wrong_are_refused(name, file, edit, said, tmp_path):
    with pytest.raises(FlowPolicyError, match=said):
        FORMATS[name].read(edited(name, edit, tmp_path, file))


def test_an_edited_experiment_is_refused_by_its_place(tmp_path):
    folder = edited("config", put("experiment", "agent", value={}), tmp_path, "config.json")
    with pytest.raises(FlowPolicyError, match="the agent dict has no"):
        Run.load(folder).experiment  # noqa: B018  read when it is asked for


def test_tensors_of_other_sizes_than_an_export_says_are_refused(tmp_path):
    edited("package", lambda value: value, tmp_path, "engine.json")
    with safe_open(tmp_path / PACKAGE[-1], "numpy") as file:
        tensors, stated = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    largest = max(tensors, key=lambda name: tensors[name].size)
    save_file(tensors | {largest: tensors[largest][:-1]}, tmp_path / PACKAGE[-1], stated)
    seal(tmp_path)
    with pytest.raises(FlowPolicyError, match="no model of its own description"):
        FORMATS["package"].read(tmp_path)
