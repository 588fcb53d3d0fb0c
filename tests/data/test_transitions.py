"""Transitions against a brute-force loop; returns never cross an episode's end or bootstrap from the unknown."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler

from .test_windows import numbered, same


def dataset(lengths, terminated):
    """Observations, actions and rewards are the number of their row; ``terminated`` rows have mask 0."""
    data = numbered(lengths)
    rows = sum(lengths)
    data.steps["reward"] = torch.arange(rows, dtype=torch.float32)
    data.steps["mask"] = torch.tensor([float(row not in terminated) for row in range(rows)])
    return data


def expected(data, row, horizon):
    """(number of rewards, mask, row that bootstraps), or None where nothing is known."""
    last = next(s + n - 1 for s, n in zip(data.starts.tolist(), data.lengths.tolist(), strict=True) if s + n > row)
    here, count = row, 0
    while True:
        if data.steps["mask"][here] == 0:
            return count + 1, 0, None
        if count == horizon or here == last:
            return (count, 1, here) if count else None
        here, count = here + 1, count + 1
        if count == horizon:
            return count, 1, here


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    horizon=st.integers(1, 6),
    history=st.integers(1, 3),
    terminated=st.sets(st.integers(0, 34)),
)
def test_transitions_equal_a_brute_force_loop(lengths, horizon, history, terminated):
    data = dataset(lengths, terminated)
    known = {row: found for row in range(sum(lengths)) if (found := expected(data, row, horizon))}
    if not known:
        with pytest.raises(DataError, match="no row has a successor"):
            TransitionSampler(data, history, 1, 1, horizon=horizon)
        return
    sampler = TransitionSampler(data, history, 1, 64, horizon=horizon)
    drawn = sampler.draw(torch_generator(0))["obs", "b"][:, -1, 0].neg().long().tolist()
    assert set(drawn) <= set(known)
    batch = sampler.at(torch.tensor(list(known)))
    for (row, (steps, mask, following)), one in zip(known.items(), map(batch.at, range(len(known))), strict=True):
        assert one["reward"].tolist() == [float(row + k) if k < steps else 0.0 for k in range(horizon)]
        assert (one["steps"].item(), one["mask"].item()) == (steps, mask)
        if mask:
            assert one["next_obs", "b"][-1].item() == -following and one["next_action"][0].item() == following
            start = max(s for s in data.starts.tolist() if s <= row)
            past = [-float(max(following - back, start)) for back in reversed(range(history))]
            assert one["next_obs", "b"][:, 0].tolist() == past


def test_every_row_that_has_a_successor_is_drawn_equally_often():
    sampler = TransitionSampler(dataset([4, 3, 5], {6}), 1, 1, 90_000)
    starts = sampler.draw(torch_generator(0))["obs", "b"].flatten().neg().long()
    counts = starts.bincount(minlength=12)
    assert (counts == 0).nonzero().flatten().tolist() == [3, 11]
    assert ((counts[counts > 0] - 9000).abs() < 400).all()


def test_masks_are_not_terminals():
    """In OGBench data a trajectory goes on after its goal; mask 0 ends the return, the window goes on."""
    batch = TransitionSampler(dataset([6], {2}), 1, 4, 1).at(torch.tensor([1, 3]))
    assert batch["steps"].tolist() == [2, 2] and batch["mask"].tolist() == [0, 1]
    assert batch["reward"].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    assert batch["valid"].tolist() == [[True] * 4, [True, True, True, False]]
    assert batch["next_action"][1, 0] == 5


def test_windows_are_those_of_the_window_sampler():
    data = dataset([5, 6], {4})
    index = torch.tensor([0, 3, 4, 7])
    windows = WindowSampler(data, 2, 3, 1).at(index)
    transitions = TransitionSampler(data, 2, 3, 1).at(index)
    assert same(windows, {name: transitions[name] for name in windows})


def test_memory_mapped_transitions_equal_those_in_memory(robomimic_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, mapped = (load_dataset(DataConfig(str(robomimic_file), memory_limit_mb=limit)) for limit in (2048, 0))
    draws = [TransitionSampler(d, 2, 3, 50, horizon=4).draw(torch_generator(0)) for d in (plain, mapped)]
    assert mapped.memory_mapped and same(*draws)


def test_draws_are_uniform_numbers_of_the_rows_that_have_a_successor():
    """A run that is resumed draws what it would have drawn, whatever became faster since its checkpoint."""
    data = dataset([4, 3, 5], {6})
    for sampler, rows in (
        (WindowSampler(data, 2, 3, 50), torch.arange(12)),
        (TransitionSampler(data, 2, 3, 50), torch.tensor([row for row in range(12) if row not in (3, 11)])),
    ):
        generator, same_generator = torch_generator(0), torch_generator(0)
        for _ in range(3):
            index = rows[torch.randint(len(rows), (50,), generator=same_generator)]
            assert same(sampler.draw(generator), sampler.at(index))
