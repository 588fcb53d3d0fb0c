import dataclasses
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flowpolicy.cli import main
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import ActionSpec
from flowpolicy.data.normalize import Normalizer, NormalizerConfig

from .test_windows import numbered


def dataset_of(column: torch.Tensor):
    """Observation "a" and the action are ``column``; "b" counts."""
    dataset = numbered([column.shape[0]])
    dataset.steps["obs"]["a"] = column
    dataset.steps["action"] = column.repeat(1, 3)[:, :3].contiguous()
    return dataset


def fit(column, obs="standard"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Normalizer.fit(dataset_of(column), NormalizerConfig(obs))


def test_standard_is_mean_zero_deviation_one():
    column = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e3, 10.0]) + 5000
    scaled = fit(column).obs({"a": column})["a"].double()
    torch.testing.assert_close(scaled[:, 0].mean(), torch.tensor(0.0).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0).double(), atol=1e-4, rtol=0)


def test_minmax_maps_the_range_to_one():
    column = torch.tensor([[1.0, -4.0], [3.0, 0.0], [2.0, 2.0]])
    scaled = fit(column, obs="minmax").obs({"a": column})["a"]
    torch.testing.assert_close(scaled, torch.tensor([[-1.0, -1.0], [1.0, 1 / 3], [0.0, 1.0]]))


def test_quantile_maps_one_and_ninety_nine_percent():
    column = torch.arange(101.0)[:, None].repeat(1, 2)
    normalizer = fit(column, obs="quantile")
    torch.testing.assert_close(
        normalizer.obs({"a": torch.tensor([[1.0, 99.0], [50.0, 0.0]])})["a"],
        torch.tensor([[-1.0, 1.0], [0.0, -50 / 49]]),
    )


def test_none_leaves_values_alone():
    column = torch.randn(10, 2)
    assert torch.equal(fit(column, obs="none").obs({"a": column})["a"], column)


def test_inverse_is_exact_to_round_off():
    column = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([2.0, 0.1, 50.0]) - 1
    normalizer = fit(column, obs="none")
    action = torch.rand(4, 7, 3) * 2 - 1
    ulp = torch.finfo(torch.float32).eps * 50
    torch.testing.assert_close(normalizer.unaction(normalizer.action(action)), action, atol=4 * ulp, rtol=0)


CONSTANTS = st.sampled_from([0.0, 0.08, 0.25, -1.57, 1.0, 2048.0, -3e7])
RANGES = st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4)).map(lambda ends: (ends[0], ends[0] + ends[1]))


@given(
    dims=st.lists(st.one_of(CONSTANTS, RANGES, st.just((-1.0, 1.0))), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_a_policy_within_its_limits_can_say_every_action_of_the_data(dims, seed):
    """Whatever a network answers lies in [-1, 1] when it is unscaled; constants come back exactly."""
    ends = torch.tensor([dim if isinstance(dim, tuple) else (dim, dim) for dim in dims], dtype=torch.float32)
    column = torch.lerp(*ends.T, torch.rand(40, len(dims), generator=torch.Generator().manual_seed(seed)))
    dataset = numbered([40])
    dataset.steps["action"] = column
    dataset.spec = dataclasses.replace(dataset.spec, action=ActionSpec(len(dims)))
    inside = bool((column.abs() <= 1).all())
    for scaling in ("minmax", "none") if inside else ("minmax",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            normalizer = Normalizer.fit(dataset, NormalizerConfig(action=scaling))
        said = normalizer.unaction(normalizer.within(normalizer.action(column)))
        torch.testing.assert_close(said, column, rtol=1e-5, atol=1e-6 * float(column.abs().max()))
        constant = (column == column[0]).all(0)
        nonsense = normalizer.unaction(normalizer.within(100 * torch.randn(8, len(dims))))
        assert torch.equal(nonsense[:, constant], column[:8, constant])
    if not inside:
        with pytest.raises(ConfigError, match=r"leave --normalizer\.action out"):
            Normalizer.fit(dataset, NormalizerConfig(action="none"))


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_scalings_whose_clamp_would_cut_the_data_are_refused(scaling, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "debug", "--normalizer.action", scaling])
    assert stopped.value.code == 2
    assert "minmax" in capsys.readouterr().err


@pytest.mark.parametrize("scaling", ["standard", "minmax", "quantile"])
def test_near_constant_observation_is_left_out_with_one_warning(scaling):
    column = torch.stack([torch.linspace(-1, 1, 100), 1000.0 + 1e-3 * torch.linspace(-1, 1, 100)], dim=1)
    dataset = dataset_of(column)
    with pytest.warns(UserWarning, match="near-constant") as caught:
        normalizer = Normalizer.fit(dataset, NormalizerConfig(scaling))
    assert len(caught) == 1 and "obs/a [1]" in str(caught[0].message)
    moved = torch.tensor([[0.5, 2000.0]])
    assert (normalizer.obs({"a": moved})["a"][:, 1] == 0).all()


def test_actions_that_vary_a_little_are_scaled():
    """At 1 kHz a whole motion is made of steps of 1e-5 m."""
    column = torch.linspace(-1e-5, 1e-5, 50)[:, None].repeat(1, 2)
    assert float(fit(column, obs="none").action(dataset_of(column).steps["action"]).max()) == pytest.approx(1.0)


def test_numbers_stored_before_constants_were_exact_mean_what_they_meant():
    old = Normalizer({"a": 2}, 1)  # offset 0, scale 1, no limit
    assert old.unaction(old.within(torch.tensor([0.3, -2.0])[:, None])).flatten().tolist() == pytest.approx([0.3, -1.0])


@pytest.mark.parametrize("scaling", ["standard", "minmax", "quantile"])
def test_what_leaves_the_range_of_the_data_is_clamped_in_observations_only(scaling):
    column = torch.linspace(-1, 1, 50)[:, None].repeat(1, 2)
    normalizer = Normalizer.fit(dataset_of(column), NormalizerConfig(scaling, limit=3.0))
    assert normalizer.obs({"a": torch.tensor([[100.0, -100.0]])})["a"].tolist() == [[3.0, -3.0]]
    assert normalizer.obs({"a": column})["a"].abs().max() < 3.0
    assert normalizer.action(torch.full((1, 3), 100.0)).min() > 50.0
    with pytest.raises(ConfigError, match=r"normalizer.limit is 0"):
        NormalizerConfig(limit=0.0)


def test_one_key_is_scaled_otherwise():
    column = torch.linspace(0, 8, 50)[:, None].repeat(1, 2)
    dataset = dataset_of(column)
    normalizer = Normalizer.fit(dataset, NormalizerConfig("standard", per_key={"a": "minmax"}))
    scaled = normalizer.obs({"a": column, "b": dataset.steps["obs", "b"]})
    assert float(scaled["a"].max()) == 1.0
    assert float(scaled["b"].std(correction=0)) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="did you mean 'b'"):
        Normalizer.fit(dataset, NormalizerConfig(per_key={"bb": "none"}))


def test_small_but_real_spread_is_scaled():
    column = torch.linspace(-1e-3, 1e-3, 50)[:, None].repeat(1, 2)
    assert float(fit(column, obs="minmax").obs({"a": column})["a"].max()) == pytest.approx(1.0)


def test_state_survives_safetensors(tmp_path):
    column = torch.randn(50, 2)
    normalizer = fit(column)
    save_file(normalizer.state_dict(), tmp_path / "normalizer.safetensors")
    other = Normalizer({"a": 2, "b": 1}, 3)
    other.load_state_dict(load_file(tmp_path / "normalizer.safetensors"))
    torch.testing.assert_close(other.obs({"a": column})["a"], normalizer.obs({"a": column})["a"])
    torch.testing.assert_close(other.unaction(torch.ones(3)), normalizer.unaction(torch.ones(3)))


def test_awkward_observation_names():
    normalizer = Normalizer({"observation.state": 2, "keys": 1, "type": 3}, 1)
    obs = {"observation.state": torch.ones(5, 2), "keys": torch.ones(1), "unused": torch.ones(1)}
    assert set(normalizer.obs(obs)) == {"observation.state", "keys"}


def test_blocks_do_not_change_the_fit(monkeypatch):
    column = torch.randn(1001, 2, generator=torch.Generator().manual_seed(2))
    whole = fit(column, obs="standard").state_dict()
    monkeypatch.setattr("flowpolicy.data.normalize._BLOCK", 13)
    for name, value in fit(column, obs="standard").state_dict().items():
        torch.testing.assert_close(value, whole[name])
