from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten

from flowpolicy.core.columns import Columns, plain
from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.core.streams import STATES, Layout
from flowpolicy.data.dataset import DataConfig, Dataset, load_dataset
from flowpolicy.data.normalize import Normalizer, NormalizerConfig
from flowpolicy.data.windows import WindowSampler


def same(left, right):
    """Whether the same names hold the same numbers."""
    flat = [tree_flatten(plain(columns)) for columns in (left, right)]
    return flat[0][1] == flat[1][1] and all(map(torch.equal, flat[0][0], flat[1][0]))


def numbered(lengths: list[int]) -> Dataset:
    """Every observation and action is the number of its row (observation b: its negative)."""
    rows = sum(lengths)
    number = torch.arange(rows, dtype=torch.float32)[:, None]
    obs = Columns({"a": number.repeat(1, 2), "b": -number})
    return Dataset(
        steps=Columns({"obs": obs, "action": number.repeat(1, 3)}),
        lengths=torch.tensor(lengths),
        names=tuple(f"demo_{i}" for i in range(len(lengths))),
        spec=Spec({"a": ObservationSpec((2,)), "b": ObservationSpec((1,))}, ActionSpec(3)),
        env_args={},
        path=Path("numbered.hdf5"),
        sha256="",
        filter_key="",
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    history=st.integers(1, 4),
    chunk=st.integers(1, 9),
)
@pytest.mark.quick("data")
def test_windows_equal_a_brute_force_loop(lengths, history, chunk):
    dataset = numbered(lengths)
    if max(lengths) < chunk:
        with pytest.raises(DataError, match="every episode is shorter than a chunk"):
            WindowSampler(dataset, history, chunk, 1)
        return
    batch = WindowSampler(dataset, history, chunk, 1).at(torch.arange(sum(lengths)))
    row = 0
    for start, length in zip(dataset.starts.tolist(), lengths, strict=True):
        last = start + length - 1
        for here in range(start, last + 1):
            past = [max(here - back, start) for back in reversed(range(history))]
            ahead = [here + step for step in range(chunk)]
            window = batch.at(row)
            assert window["obs", "a"][:, 1].tolist() == past
            assert window["obs", "b"][:, 0].tolist() == [-i for i in past]
            assert window["action"][:, 2].tolist() == [min(i, last) for i in ahead]
            assert window["valid"].tolist() == [i <= last for i in ahead]
            row += 1


def test_shapes_and_types():
    batch = WindowSampler(numbered([5, 7]), history=2, chunk=3, batch_size=4).draw(torch_generator(0))
    assert batch.rows == 4
    assert batch["obs", "a"].shape == (4, 2, 2) and batch["action"].shape == (4, 3, 3)
    assert batch["valid"].dtype == torch.bool and batch["action"].dtype == torch.float32


def test_starts_are_uniform_over_all_rows():
    lengths = [1, 3, 6]
    sampler = WindowSampler(numbered(lengths), history=1, chunk=2, batch_size=100_000)
    starts = sampler.draw(torch_generator(0, "uniform"))["obs", "b"].flatten().neg().long()
    counts = starts.bincount(minlength=10).double()
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 27.9  # 99.9 % point of chi-square with 9 degrees of freedom


def test_only_the_generator_decides():
    sampler = WindowSampler(numbered([50]), history=1, chunk=4, batch_size=8)
    torch.manual_seed(1)
    first = sampler.draw(torch_generator(3))
    torch.manual_seed(2)
    assert same(first, sampler.draw(torch_generator(3)))
    assert not same(first, sampler.draw(torch_generator(4)))


def test_memory_mapped_windows_equal_those_in_memory(robomimic_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, mapped = (load_dataset(DataConfig(str(robomimic_file), memory_limit_mb=limit)) for limit in (2048, 0))
    index = torch.arange(306)
    windows = [WindowSampler(dataset, 3, 21, 1).at(index) for dataset in (plain, mapped)]
    assert mapped.memory_mapped and same(*windows)


def test_streams_are_scaled_and_packed_once_and_after_the_draw_where_a_file_is_mapped(
    robomimic_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, mapped = (load_dataset(DataConfig(str(robomimic_file), memory_limit_mb=limit)) for limit in (2048, 0))
    normalizer, layout, index = (
        Normalizer.fit(plain, NormalizerConfig()),
        Layout(plain.spec.observation),
        torch.arange(9),
    )
    calls = []

    def streams(obs):
        calls.append(len(next(iter(obs.values()))))
        return layout.pack(normalizer.obs(obs))

    named = WindowSampler(plain, 3, 21, 1).at(index)["obs"]
    wanted = layout.pack(normalizer.obs(dict(named)))
    samplers = [WindowSampler(dataset, 3, 21, 1, streams=streams) for dataset in (plain, mapped)]
    for sampler in samplers:
        for _ in range(2):
            found = sampler.at(index)["obs"]
            assert list(found) == [STATES] and torch.equal(found[STATES], wanted[STATES])
    assert calls == [plain.steps.rows, 9, 9]


def test_the_actions_before_a_window_end_at_the_episode():
    dataset = numbered([4, 5])
    batch = WindowSampler(dataset, 1, 3, 1, previous=True).at(torch.tensor([0, 2, 4, 8]))
    assert batch["previous"][:, :, 0].tolist() == [[0, 0, 0], [0, 0, 1], [4, 4, 4], [5, 6, 7]]
    known = [[False] * 3, [False, True, True], [False] * 3, [True] * 3]
    assert batch["known"].tolist() == known
    assert "previous" not in WindowSampler(dataset, 1, 3, 1).at(torch.tensor([0]))


def test_windows_say_where_they_start_if_that_is_asked_for():
    dataset = numbered([5, 4])
    batch = WindowSampler(dataset, 2, 3, 1, placed=True).at(torch.tensor([0, 4, 5, 8]))
    assert batch["row"].tolist() == [0, 4, 5, 8] and batch["first"].tolist() == [0, 0, 5, 5]
    assert "row" not in WindowSampler(dataset, 2, 3, 1).at(torch.tensor([0]))
