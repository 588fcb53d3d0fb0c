"""What real LeRobot folders do wrong (shared/spec/vision.md 4.2): each is refused, mended and told, or a finding."""

import json
import multiprocessing
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, DataWarning
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.dataset_checks import Finding
from flowpolicy.data.lerobot_checks import check_folder
from flowpolicy.data.picture_checks import check_pictures
from tests.data.lerobot_folder import (
    SIZE,
    edit_json,
    edit_table,
    number_in,
    numbered,
    write_folder,
    write_video,
)

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FRONT = "videos/observation.images.front"
FRONT_2 = "videos/chunk-000/observation.images.front"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", tasks=("lift",))


def load(folder: Path, cameras=("front",), **more):
    return load_dataset(DataConfig(str(folder), cameras=cameras, **more))


def told(folder: Path, words: str, **more):
    """The dataset, whose reader must warn of these words."""
    with pytest.warns(DataWarning, match=words):
        return load(folder, **more)


def refused(folder: Path, words: str, **more) -> None:
    with pytest.raises(DataError, match=words) as error:
        load(folder, **more)
    assert str(folder) in str(error.value)


def right(dataset, first=0) -> bool:
    """Whether every frame carries the number of its row."""
    frames = dataset.frames["front_image"].take(np.arange(dataset.steps.rows))
    rows = np.round(dataset.steps[keys.OBS]["state"][:, 1].numpy() * 100).astype(int).tolist()
    return [number_in(frame) for frame in frames] == rows


def findings(folder: Path, level: str) -> list[Finding]:
    dataset = load_unchecked(DataConfig(str(folder)))
    return [each for each in check_folder(dataset) + check_pictures(folder) if each.level == level]


def shift(column: str, by: dict[int, float]):
    def change(columns):
        for row, value in by.items():
            columns[column][row] += value

    return change


@pytest.mark.filterwarnings("error")
def test_1_times_that_drifted_by_less_than_half_a_frame(folder):
    edit_table(folder / EPISODES, shift(f"{FRONT}/from_timestamp", {1: 0.012, 2: -0.013, 4: 0.01}))
    assert right(load(folder))


def test_2_times_of_another_file(folder):
    edit_table(folder / EPISODES, shift(f"{FRONT}/from_timestamp", {1: 460.2}))
    assert right(told(folder, "episode_000001, frame 0, of observation.images.front is not there.*counted"))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_3_times_of_the_hardware(tmp_path, version):
    clock = {"timestamp": lambda number, length: (np.arange(length) * 0.034 + 0.1).astype(np.float32)}
    folder = write_folder(tmp_path / "set", version, tasks=("lift",), more=clock)
    assert right(told(folder, "episode_000000, frame 0, at 0.1000 s instead of 0.0000 s"))


def test_4_a_table_that_names_the_file_before(folder):
    edit_table(folder / EPISODES, shift("data/file_index", {2: -1}))
    assert right(told(folder, "episode_000002 stands in data/chunk-000/file-000.parquet, and it stands in .*file-001"))


def test_4_a_table_that_names_the_video_before(folder):
    edit_table(folder / EPISODES, shift(f"{FRONT}/file_index", {3: -1}))
    assert right(told(folder, "counted one after the other"))


def test_4_files_that_begin_with_number_one(folder):
    for number in (2, 1, 0):
        where = folder / "data/chunk-000"
        (where / f"file-{number:03d}.parquet").rename(where / f"file-{number + 1:03d}.parquet")
    dataset = told(folder, "episode_000000 stands in .*file-000.parquet, and it stands in .*file-001")
    assert right(dataset) and dataset.steps.rows == 57


def test_6_rows_and_frames_of_the_next_episode_at_the_end(tmp_path):
    folder = write_folder(tmp_path / "set", "v2.1", tasks=("lift",))
    first, second = (folder / f"data/chunk-000/episode_00000{k}.parquet" for k in (0, 1))
    tables = [pq.ParquetFile(path).read() for path in (first, second)]
    import pyarrow as pa

    pq.write_table(pa.concat_tables([tables[0], tables[1].slice(0, 3)]), first)
    write_video(
        folder / "videos/chunk-000/observation.images.front/episode_000000.mp4", [numbered(k) for k in range(15)]
    )
    with pytest.warns(DataWarning, match="holds rows of episode_000001 in .*episode_000000.parquet"):
        dataset = told(folder, "3 frames in .*episode_000000.mp4 that belong to no row")
    assert right(dataset)
    for path, table in zip((first, second), tables, strict=True):  # the same, but numbered as its own
        pq.write_table(table, path)
    columns = tables[1].slice(0, 3).to_pydict() | {"episode_index": [0, 0, 0]}
    pq.write_table(pa.concat_tables([tables[0], pa.table(columns, schema=tables[0].schema)]), first)
    assert right(told(folder, "holds 15 rows of episode_000000 .* says 12"))


@pytest.mark.parametrize("column", ["task", "__index_level_0__", "instruction_text"])
def test_7_instructions_stand_beside_their_numbers(tmp_path, column):
    folder = write_folder(tmp_path / "set", cameras=(), tasks=("lift", "push"), task_column=column)
    edit_table(folder / "meta/tasks.parquet", lambda columns: [values.reverse() for values in columns.values()])
    dataset = load(folder, cameras=())
    assert dataset.instructions == ("lift", "push")
    assert dataset.steps[keys.TASK][[0, 12]].tolist() == [0, 1]


def test_7_a_number_without_a_text(tmp_path):
    folder = write_folder(tmp_path / "set", cameras=(), tasks=("lift", "push"))
    edit_table(folder / "meta/tasks.parquet", lambda columns: [values.pop() for values in columns.values()])
    dataset = told(
        folder, "gives no text for some of its rows: the instruction 1 of episode_000001, frame 0", cameras=()
    )
    assert dataset.steps[keys.TASK].unique().tolist() == [-1, 0]
    refused(folder, "the instruction 1 of episode_000001, frame 0, has no text", cameras=(), obs_keys=("instruction",))


@pytest.mark.filterwarnings("ignore")
def test_8_a_table_without_tasks(tmp_path):
    folder = write_folder(tmp_path / "set", cameras=(), tasks=("lift", "push"))
    edit_table(folder / EPISODES, lambda columns: columns.pop("tasks"))
    assert load(folder, cameras=()).steps[keys.TASK][[0, 12]].tolist() == [0, 1]


def test_10_to_12_statistics(folder):
    image = {"std": [[[0.004]]] * 3, "mean": [[[0.4]]] * 3, "count": [57]}
    state = {"std": [1, 1, 1], "mean": [0, 0, 0]}
    (folder / "meta/stats.json").write_text(json.dumps({"observation.images.front": image, "observation.state": state}))
    assert any("deviation of 0.004, and pixels have 0." in each.message for each in findings(folder, "warning"))
    assert any("no quantiles q01 and q99 of" in each.message for each in findings(folder, "note"))
    image["std"] = np.ones((48, 64, 3)).tolist()
    (folder / "meta/stats.json").write_text(json.dumps({"observation.images.front": image}))
    assert any("have 9216 numbers instead of 3" in each.message for each in findings(folder, "warning"))


@pytest.mark.filterwarnings("ignore")
def test_11_pictures_as_numbers_in_a_table(tmp_path):
    def pictures(number, length):
        return [numbered(sum([12, 9, 15, 10, 11][:number]) + step).tolist() for step in range(length)]

    feature = {"observation.images.front": {"dtype": "uint8", "shape": [*SIZE, 3], "names": None}}
    folder = write_folder(
        tmp_path / "set", cameras=(), more={"observation.images.front": pictures}, features=feature, lengths=(12, 9)
    )
    dataset = load(folder)
    assert right(dataset)
    assert (dataset.frames["front_image"].take(np.array([5]))[0] == numbered(5)).all()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_13_one_frame_less(tmp_path, version):
    folder = write_folder(tmp_path / "set", version, tasks=("lift",))
    if version == "v3.0":
        write_video(folder / FRONT / "chunk-000/file-001.mp4", [numbered(k) for k in range(36, 56)])
        refused(folder, "file-001.mp4 has 20 frames for 21 rows: episode_000004, frame 10, of observation.images.front")
    else:
        write_video(
            folder / "videos/chunk-000/observation.images.front/episode_000001.mp4",
            [numbered(k) for k in range(12, 20)],
        )
        refused(folder, "has 8 frames for 9 rows: episode_000001, frame 8, of observation.images.front is not there")
    assert any("is not there" in each.message for each in findings(folder, "error"))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_13_a_truncated_video(tmp_path, share):
    folder = write_folder(tmp_path / "set", tasks=("lift",))
    path = folder / FRONT / "chunk-000/file-001.mp4"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(folder, r"file-001\.mp4 is truncated or damaged")
    assert any("file-001.mp4 is truncated" in each.message for each in findings(folder, "error"))


def test_13_a_video_whose_data_is_cut_behind_its_index(tmp_path):
    import av

    folder = write_folder(tmp_path / "set", tasks=("lift",))
    path = folder / FRONT / "chunk-000/file-001.mp4"
    with av.open(str(path)) as source, av.open(str(path) + ".mp4", "w", options={"movflags": "faststart"}) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    whole = Path(f"{path}.mp4").read_bytes()
    Path(f"{path}.mp4").unlink()
    path.write_bytes(whole[: int(0.8 * len(whole))])
    refused(folder, "episode_00000[34], frame [0-9]+,")


def test_14_an_end_that_is_the_time_of_the_last_frame(folder):
    edit_table(folder / EPISODES, shift(f"{FRONT}/to_timestamp", dict.fromkeys(range(5), -1 / 30)))
    assert right(load(folder))


def test_14_another_codec_than_is_declared(tmp_path):
    folder = write_folder(tmp_path / "set", tasks=("lift",))
    for number, rows in ((0, range(36)), (1, range(36, 57))):
        write_video(folder / FRONT / f"chunk-000/file-00{number}.mp4", [numbered(k) for k in rows], 30, "mpeg4", 12)
    assert right(load(folder))
    assert any("says h264" in each.message and "coded as mpeg4" in each.message for each in findings(folder, "note"))


def test_14_a_folder_of_another_name_than_its_template(folder):
    (folder / "videos").rename(folder / "video")
    assert right(load(folder))
    assert any("holds video/" in each.message for each in findings(folder, "warning"))


@pytest.mark.filterwarnings("ignore")
def test_15_forked_processes_read_the_same_frames(folder):
    dataset = load(folder)
    context, parts = multiprocessing.get_context("fork"), [list(range(k, 57, 3)) for k in range(3)]
    queue = context.SimpleQueue()

    def child(rows):
        queue.put([number_in(frame) for frame in dataset.frames["front_image"].take(np.array(rows))])

    children = [context.Process(target=child, args=(rows,)) for rows in parts]
    for process in children:
        process.start()
    assert sorted(queue.get() for _ in parts) == sorted(parts)
    for process in children:
        process.join()


@pytest.mark.parametrize("file", ["data/chunk-000/file-001.parquet", EPISODES, "meta/tasks.parquet"])
def test_17_a_parquet_file_without_its_footer(folder, file):
    path = folder / file
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, f"{re.escape(file)} is no whole parquet file: its footer is missing")


def test_18_meta_files_of_another_version(tmp_path):
    two, three = (
        write_folder(tmp_path / version, version, tasks=("lift",), cameras=()) for version in ("v2.1", "v3.0")
    )
    for folder, other in ((two, "v3.0"), (three, "v2.1")):
        edit_json(folder / "meta/info.json", lambda info, other=other: info.update(codebase_version=other))
    refused(two, "codebase_version|names the field", cameras=())
    refused(three, "codebase_version|names the field", cameras=())
    shutil.rmtree(tmp_path / "v2.1")
    two = write_folder(tmp_path / "v2.1", "v2.1", tasks=("lift",), cameras=())
    shutil.copy(three / "meta/tasks.parquet", two / "meta/tasks.parquet")
    (two / "meta/tasks.jsonl").unlink()
    assert told(two, "holds meta/tasks.parquet, and v2.1 has meta/tasks.jsonl", cameras=()).instructions == ("lift",)


def test_19_one_video_is_open_at_a_time(tmp_path, monkeypatch):
    from flowpolicy.data import lerobot_pictures

    alive, most = set(), []
    opened, closed = lerobot_pictures.VideoFile.__init__, lerobot_pictures.VideoFile.close

    def open_one(self, *args):
        opened(self, *args)
        alive.add(id(self))
        most.append(len(alive))

    def close_one(self):
        closed(self)
        alive.discard(id(self))

    monkeypatch.setattr(lerobot_pictures.VideoFile, "__init__", open_one)
    monkeypatch.setattr(lerobot_pictures.VideoFile, "close", close_one)
    load(write_folder(tmp_path / "set", tasks=("lift",), video_every=1))
    assert len(most) == 5 and max(most) == 1


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.filterwarnings("error")
def test_20_a_rate_that_is_no_whole_number(tmp_path, version):
    dataset = load(write_folder(tmp_path / "set", version, tasks=("lift",), fps=29.97, rate=Fraction(2997, 100)))
    assert right(dataset)
    assert dataset.spec.action.rate_hz == 29.97


def test_20_a_rate_that_a_converter_cut(tmp_path):
    folder = write_folder(tmp_path / "set", lengths=(40, 50, 45), tasks=("lift",), fps=29.97, rate=Fraction(2997, 100))
    edit_json(folder / "meta/info.json", lambda info: info.update(fps=29))
    with pytest.warns(DataWarning, match=r"about 29\.97 rows per second"):
        dataset = told(folder, r"says 29 frames per second and .*mp4 has 29\.97")
    assert right(dataset)


def test_depth_is_refused_where_it_is_named(folder):
    def depth(info):
        info["features"]["observation.images.front"]["info"]["video.is_depth_map"] = True

    edit_json(folder / "meta/info.json", depth)
    with pytest.warns(DataWarning, match="front_image .a stream of depth"):
        load(folder, cameras=())
    refused(folder, "observation.images.front is a stream of depth")


def test_a_frame_at_another_time_than_its_row(folder):
    import av

    path = folder / FRONT / "chunk-000/file-001.mp4"
    path.unlink()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for k in range(21):
            frame = av.VideoFrame.from_ndarray(numbered(36 + k), format="rgb24")
            frame.pts = (k if k < 14 else k + 2) * 512
            frame.time_base = stream.codec_context.time_base = 1 / (stream.codec_context.framerate * 512)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(folder, "[Ee]pisode_000004, frame 4, of observation.images.front is shown at")
