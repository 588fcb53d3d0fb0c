"""The segment head: closed forms of its curve, and what it is trained on."""

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.flow_spec import FlowSpec, Sampling
from flowpolicy.flows.axes.guidance import Situation
from flowpolicy.flows.axes.refusals import IncompatibleSpecError, Setting, validate
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.axes.targets import Curve, Segment

F64 = torch.float64


def random_curve(modes=3, rows=5, rate=2.0):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(rows, 2, *shape, dtype=F64, generator=generator)  # noqa: E731
    return Curve(draw(modes, 1).softmax(2), draw(modes, 4), rate * draw(modes, 1))


def times(value, rows=5):
    return torch.full((rows,), value, dtype=F64)


def test_the_mean_velocity_is_the_integral():
    curve = random_curve()
    nodes = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    tau = 0.2 + 0.5 * nodes
    values = (curve.weight * curve.mode * 1.0).unsqueeze(-1) * (curve.rate.unsqueeze(-1) * tau).exp()
    torch.testing.assert_close(curve.mean(times(0.2), times(0.5)), values.sum(2).mean(-1), atol=1e-8, rtol=0)


def test_two_halves_are_the_whole_and_rates_near_zero_are_no_edge():
    curve = random_curve()
    whole = 0.6 * curve.mean(times(0.0), times(0.6))
    halves = 0.3 * curve.mean(times(0.0), times(0.3)) + 0.3 * curve.mean(times(0.3), times(0.3))
    torch.testing.assert_close(whole, halves, atol=1e-12, rtol=0)
    constant = (curve.weight * curve.mode).sum(2)
    still = curve._replace(rate=torch.zeros_like(curve.rate))
    torch.testing.assert_close(still.mean(times(0.3), times(0.6)), constant, atol=1e-14, rtol=0)
    for rate in (1e-3 - 1e-9, 1e-3 + 1e-9):
        near = curve._replace(rate=torch.full_like(curve.rate, rate))
        exact = constant * torch.expm1(torch.tensor(rate * 0.9, dtype=F64)) / (rate * 0.9)
        torch.testing.assert_close(near.mean(times(0.0), times(0.9)), exact, atol=1e-10, rtol=0)
    assert torch.isfinite(curve._replace(rate=0 * curve.rate).mean(times(0.0), times(0.0))).all()


def linear(growth, limit=8.0):
    """What a network says that knows dx/dt = growth x: one mode of rate 0 that weighs nothing, and growth x."""
    raw = torch.atanh(torch.tensor(growth / limit, dtype=F64)) - 2 / limit  # rates are told apart: the first by 2

    def predict(x, s):
        ones = torch.ones_like(x[..., :1])
        return torch.cat([torch.zeros_like(x), growth * x, -50 * ones, 50 * ones, raw * ones], dim=2)

    return predict


def test_it_is_exact_along_an_eigenvector_and_one_segment_is_enough():
    head, x = Segment(modes=2), torch.randn(5, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert head.outputs(4) == linear(1.5)(x, times(0.0)).shape[2] == 11
    end = x + 0.7 * head.mean(linear(1.5)(x, times(0.2)), times(0.2), times(0.9))
    torch.testing.assert_close(end, x * torch.exp(torch.tensor(1.5 * 0.7, dtype=F64)), atol=1e-12, rtol=0)
    chosen = Sampling(target=head, solver=make("solver", "self"))
    network = lambda x, s, t: linear(-2.0)(x, s)  # noqa: E731
    for evaluations in (1, 3):
        flow = chosen.dynamics(network, network, (), Situation(grid=chosen.grid(evaluations)))
        assert isinstance(flow, Dynamics)
        found = chosen.generate(flow, x, evaluations, None)
        torch.testing.assert_close(found, x * torch.exp(torch.tensor(-2.0, dtype=F64)), atol=1e-12, rtol=0)


def test_the_errors_vanish_for_the_exact_flow_and_the_teacher_has_no_gradient():
    head, x = Segment(modes=2, window=1e-7), torch.randn(5, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    s, t = times(0.1), torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=F64)
    start, curve = head.errors(linear(0.7), x, 0.7 * x, s, t)
    assert float(start.abs().max()) < 1e-12 and float(curve.abs().max()) < 1e-6
    weight = torch.tensor(1.0, dtype=F64, requires_grad=True)
    asked = []

    def predict(x, s):
        asked.append(torch.is_grad_enabled())
        return weight * linear(0.7)(x, s)

    head.errors(predict, x, 0.7 * x, s, t)
    assert asked == [True, False]


def test_one_mode_is_a_constant_velocity():
    head, x = Segment(modes=1), torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(3))
    assert head.outputs(4) == 5
    prediction = torch.cat([x, torch.zeros(3, 2, 1)], dim=2)
    s, t = torch.full((3,), 0.1), torch.full((3,), 0.8)
    torch.testing.assert_close(head.mean(prediction, s, t), x)


@pytest.mark.parametrize(
    ("values", "nfe", "instead"),
    [
        ({"solver": "euler"}, 10, "--flow.solver self"),
        ({"solver": "ddim"}, 10, "--flow.solver self"),
        ({"solver": "map", "consistency": "lsd"}, 1, "--flow.solver self"),
        ({"solver": "self", "consistency": "meanflow"}, 2, "--flow.consistency none"),
        ({"solver": "self", "guidance": "cfg"}, 4, "--flow.guidance none"),
        ({"solver": "self", "target": "velocity"}, 2, "--flow.target segment"),
    ],
)
def test_it_integrates_itself(values, nfe, instead):
    spec = FlowSpec(**{axis: make(axis, name) for axis, name in {"target": "segment", **values}.items()})
    with pytest.raises(IncompatibleSpecError) as refusal:
        validate(spec, Setting(nfe=nfe))
    assert instead in refusal.value.fix


def test_options_without_meaning_are_refused():
    for options in ({"modes": 0}, {"limit": -1.0}, {"window": 0.0}, {"clamp": 0.0}):
        with pytest.raises(ConfigError, match=f"--flow.target.{next(iter(options))}"):
            Segment(**options)


def test_dropped_modes_leave_the_shares_of_the_others():
    target = Segment(modes=3)
    curve = target.curve(torch.randn(2, 2, target.outputs(2), generator=torch.Generator().manual_seed(0)))
    left = curve.without(torch.tensor([[True, False, False], [True, True, True]])).weight
    assert torch.equal(left[0, :, 0], torch.zeros(2, 1))
    assert torch.allclose(left[0, :, 1:].sum(1), torch.ones(2, 1))
    assert torch.allclose(left[0, :, 1] / left[0, :, 2], curve.weight[0, :, 1] / curve.weight[0, :, 2])
    assert torch.allclose(left[1], curve.weight[1])
