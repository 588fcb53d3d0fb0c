"""``import flowpolicy``: its names, what importing costs, and the programs of docs/python.md."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flowpolicy as fp
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def alone(code, **environment):
    """Output of a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_costs_nothing():
    heavy = "{'torch', 'numpy', 'rich', 'tyro', 'h5py', 'inspect', 'flowpolicy.core'} & set(sys.modules)"
    assert alone(f"import sys, flowpolicy; print({heavy} or 'nothing')") == "nothing\n"


def test_every_name_is_there_and_has_one_meaning_in_whatever_order_rooms_are_imported():
    assert set(fp.__all__) == set(dir(fp))
    assert all(getattr(fp, name) is not None for name in fp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fp.trian
    import flowpolicy.evaluate.rollout
    import flowpolicy.train.loop
    from flowpolicy.evaluate.evaluation import evaluate
    from flowpolicy.train.training import train

    assert inspect.signature(fp.train) == inspect.signature(train)
    assert inspect.signature(fp.evaluate) == inspect.signature(evaluate)
    assert fp.train.Trainer is flowpolicy.train.loop.Trainer


def test_a_preset_is_found_by_its_name():
    assert fp.presets["dm1-lift"].env == "lift" and "dm1-lift" in fp.presets and len(fp.presets) == len([*fp.presets])
    found = fp.presets.find("DM1", "can")
    assert found[:2] == ["dm1-can", "dm1-can-image"] and set(found[2:]) == {
        f"dm1-can-{kind}{sight}" for kind in ("ph", "mh") for sight in ("", "-image")
    }
    assert "dm1-door" in repr(fp.presets)
    with pytest.raises(ConfigError, match="did you mean 'dm1-lift'"):
        fp.presets["dm1-lfit"]


def test_an_experiment_with_other_values():
    lift = fp.presets["dm1-lift"]
    changed = lift.with_(data=Path("lift.hdf5"), steps=7, agent={"chunk": 8, "net": {"width": 32}})
    assert (changed.data.path, changed.data.obs_keys, changed.steps) == ("lift.hdf5", lift.data.obs_keys, 7)
    assert (changed.agent.chunk, changed.agent.net.width, changed.agent.net.depth) == (8, 32, lift.agent.net.depth)
    assert lift.with_(data=DataConfig(path="x")).data == DataConfig(path="x")
    with pytest.raises(ConfigError, match="MLP has no option 'widht'.*did you mean 'width'".replace(".*", r"[\s\S]*")):
        lift.with_(agent={"net": {"widht": 1}})
    with pytest.raises(ConfigError, match="--steps is 0"):
        lift.with_(steps=0)


def test_the_programs_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    try:
        for block in BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8")):
            exec(block, names)
    finally:
        fp.train.kinds.KINDS.pop("my_agent", None)
    told = capsys.readouterr().out
    assert "success, Wilson 95 %" in told and "<Run runs/flow-bc-toy-seed0: FlowBC for toy, update 100 of 100>" in told
    assert "<Evaluation of runs/flow-bc-toy-seed0: success" in told
    assert "success: " in told
    assert "<Run runs/mine: MyAgent for toy, update 20 of 20>" in told


def test_the_command_line_knows_agents_of_other_packages(tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "import dataclasses\nfrom flowpolicy.train.kinds import register_config\n"
        "@register_config('elsewhere')\n@dataclasses.dataclass(frozen=True)\nclass Elsewhere:\n    size: int = 1\n"
    )
    info = tmp_path / "elsewhere-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[flowpolicy.agents]\nelsewhere = elsewhere\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from flowpolicy.core.config import decode\nfrom flowpolicy.train.kinds import KINDS\n"
        "print(decode({'class': 'elsewhere', 'size': 3}, KINDS))"
    )
    assert alone(code) == "Elsewhere(size=3)\n"
    (tmp_path / "elsewhere.py").write_text("import missing_package")
    failing = code.replace("print(", "print('no', ")
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True)
    assert "'elsewhere = elsewhere' of the installed package elsewhere cannot be imported" in done.stderr
