"""What is written as a LeRobot folder is read again as it was: numbers bit for bit, pictures above 35 dB."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.data.dataset import load_dataset
from flowpolicy.data.lerobot_writer import LeRobotOptions, write_lerobot
from tests.conftest import write_demonstrations
from tests.data.lerobot_folder import write_folder
from tests.data.test_lerobot import CAMERAS, load, numbers, require_same_steps

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.filterwarnings("ignore::flowpolicy.core.errors.DataWarning")
def test_a_round_trip_keeps_numbers_and_pictures(tmp_path, codec):
    dataset = load(write_folder(tmp_path / "in", "v2.1", cameras=CAMERAS))
    write_lerobot(dataset, tmp_path / "out", LeRobotOptions(codec=codec, data_mb=0.01, video_mb=0.002))
    again = load(tmp_path / "out")
    require_same_steps(dataset, again)
    assert again.spec == dataset.spec
    assert again.instructions == dataset.instructions
    for key, store in dataset.frames.items():
        rows = np.arange(dataset.steps.rows)
        error = (store.take(rows).astype(float) - again.frames[key].take(rows)) ** 2
        assert 10 * np.log10(255**2 / error.mean((1, 2, 3)).max()) >= 35
        assert numbers(again, key) == list(range(len(rows)))


@pytest.mark.filterwarnings("ignore::flowpolicy.core.errors.DataWarning")
def test_states_and_contract_of_another_format_come_back(tmp_path):
    dataset = load_dataset(str(write_demonstrations(tmp_path / "demos.hdf5")))
    write_lerobot(dataset, tmp_path / "out", LeRobotOptions(fps=20.0))
    again = load_dataset(str(tmp_path / "out"))
    assert again.spec == dataset.spec
    assert list(again.spec.observation) == list(dataset.spec.observation)
    assert again.env_args == dataset.env_args
    own = {key: again.steps[key] for key in dataset.steps if key != "obs"}
    assert all((own[key] == dataset.steps[key]).all() for key in own)
    assert all((again.steps["obs"][key] == dataset.steps["obs"][key]).all() for key in dataset.steps["obs"])


@pytest.mark.filterwarnings("ignore::flowpolicy.core.errors.DataWarning")
def test_statistics_are_those_of_the_numbers_in_float64(tmp_path):
    dataset = load(write_folder(tmp_path / "in", cameras=("front",)), cameras=("front",))
    write_lerobot(dataset, tmp_path / "out")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    action = dataset.steps["action"].double().numpy()
    assert stats["action"]["std"] == action.std(0).tolist()
    assert stats["action"]["q01"] == np.quantile(action, 0.01, axis=0).tolist()
    pixels = dataset.frames["front_image"].take(np.arange(dataset.steps.rows)) / 255.0
    found = stats["observation.images.front"]
    np.testing.assert_allclose(np.reshape(found["std"], 3), pixels.std((0, 1, 2)), rtol=1e-12)
    assert found["count"] == [dataset.steps.rows]
    data = pq.ParquetFile(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert data.metadata.num_row_groups == len(dataset.lengths)


def test_nothing_is_written_over_what_stands_there(tmp_path):
    dataset = load(write_folder(tmp_path / "in", cameras=()), cameras=())
    write_lerobot(dataset, tmp_path / "out")
    with pytest.raises(FlowPolicyError, match="is there already"):
        write_lerobot(dataset, tmp_path / "out")
    write_lerobot(dataset, tmp_path / "out", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(FlowPolicyError, match="is no LeRobot folder"):
        write_lerobot(dataset, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "mine", "out"]
