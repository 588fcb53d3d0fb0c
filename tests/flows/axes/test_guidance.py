"""Every guidance against its closed form on Gaussian flows."""

import dataclasses
import itertools
import math

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.flow_spec import FlowSpec, Sampling
from flowpolicy.flows.axes.guidance import Situation
from flowpolicy.flows.axes.refusals import IncompatibleSpecError, Setting, validate
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.goals import read_goal

from ..gaussian import F64, GaussianFlow

GOAL = "sum a[:, 0] = 0.9; a[1, 1] = -0.4"
SHAPE = (2, 2)
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def network(flow, shift=0.0):
    """The exact velocity of a Gaussian flow as the network of a chunk."""
    return lambda x, s, t: flow.field(x.flatten(1), s).view_as(x) + shift


def noise(rows=5, seed=0):
    return torch.randn(rows, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sample(guidance, flow, x, steps=4, parts=(), null=None, two_time=False, **known):
    """What a policy would do with float64 networks and chunks that are the actions."""
    chosen = Sampling(guidance=guidance, solver=make("solver", "map" if two_time else "euler"), two_time=two_time)

    def carry(start):
        at = Situation(grid=chosen.grid(steps), noise=start, **known)
        full = flow if callable(flow) else network(flow)
        return chosen.generate(chosen.dynamics(full, null or full, parts, at), start, steps, None)

    at = Situation(grid=chosen.grid(steps), noise=x, **known)
    x = guidance.start(x, carry, at)
    chunks = carry(x)
    return guidance.finish(chunks.view(-1, guidance.candidates, *SHAPE), at)


def affine(flow, pull, push):
    """End of Euler's steps as ``A x + b`` where every step is ``x + h v - pull(t, h) gap(data)``, in matrices."""
    goal = read_goal(GOAL, *SHAPE)
    back = torch.linalg.pinv(goal.matrix)
    a, b = flow.eye.clone(), torch.zeros(4, dtype=F64)
    for s, t in itertools.pairwise(GRID):
        gain = flow.gain(s)
        shift = flow.mean - s * gain @ flow.mean
        data_a, data_b = flow.eye + (1 - s) * gain, (1 - s) * shift
        move = pull(s, t - s) * push(data_a) @ back
        step_a = flow.eye + (t - s) * gain - move @ goal.matrix @ data_a
        step_b = (t - s) * shift - move @ (goal.matrix @ data_b - goal.value)
        a, b = step_a @ a, step_a @ b + step_b
    return a, b


def test_gradient_without_jacobian_is_the_closed_form_affine_map():
    flow, x = GaussianFlow.random(4, 0), noise()
    a, b = affine(flow, lambda s, h: 0.3 * (1 - s), lambda data: torch.eye(4, dtype=F64))
    chunk = sample(make("guidance", "gradient", goal=GOAL, strength=0.3), flow, x)
    torch.testing.assert_close(chunk.flatten(1), x.flatten(1) @ a.T + b, atol=1e-12, rtol=0)
    # The mean of the guided policy is b, and nearer to the goal than the plain one's.
    goal = read_goal(GOAL, *SHAPE)
    plain = affine(flow, lambda s, h: 0.0, lambda data: flow.eye)[1]
    assert float(goal.cost(b.view(1, 2, 2))) < 0.2 * float(goal.cost(plain.view(1, 2, 2)))


def test_gradient_with_jacobian_is_the_closed_form_affine_map():
    def weight(s, h):
        value = math.inf if s == 0 else (1 - s) / s * (s**2 + (1 - s) ** 2) / (1 - s) ** 2
        return h * 0.7 * min(value, 5.0)

    flow, x = GaussianFlow.random(4, 1), noise()
    a, b = affine(flow, weight, lambda data: data.T)
    guidance = make("guidance", "gradient", goal=GOAL, strength=0.7, jacobian="vjp")
    torch.testing.assert_close(sample(guidance, flow, x).flatten(1), x.flatten(1) @ a.T + b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("jacobian", ["skip", "vjp"])
def test_gradient_of_strength_0_is_nothing_and_never_differentiates_by_itself(jacobian):
    flow, x = GaussianFlow.random(4, 2), noise()
    plain = sample(make("guidance", "none"), flow, x)
    guidance = make("guidance", "gradient", goal=GOAL, strength=0.0, jacobian=jacobian)
    torch.testing.assert_close(sample(guidance, flow, x), plain, atol=1e-13, rtol=0)
    assert guidance.differentiates == (jacobian == "vjp")


@pytest.mark.parametrize("two_time", [False, True])
def test_one_step_of_a_straight_flow_reaches_the_goal(two_time):
    point = torch.tensor([[0.5, -0.2], [0.1, 0.7]], dtype=F64)
    straight = lambda x, s, t: (point - x) / (1 - s).reshape(-1, 1, 1)  # noqa: E731
    chunk = sample(make("guidance", "gradient", goal="a[0] = 0.3, 0.4"), straight, noise(), 1, two_time=two_time)
    torch.testing.assert_close(chunk[:, 0], torch.tensor([0.3, 0.4], dtype=F64).expand(5, 2), atol=1e-12, rtol=0)
    torch.testing.assert_close(chunk[:, 1], point[1].expand(5, 2), atol=1e-12, rtol=0)


def test_a_trajectory_blend_keeps_what_is_held_and_frees_the_rest():
    flow, x = GaussianFlow.random(4, 3), noise()
    planned, begun = 0.1 * noise(seed=9), torch.tensor([True, True, True, True, False])
    known = {"planned": planned, "begun": begun}
    plain = sample(make("guidance", "none"), flow, x)
    held = sample(make("guidance", "trajectory-blend", held=2), flow, x, **known)
    torch.testing.assert_close(held[:4], planned[:4], atol=1e-12, rtol=0)
    torch.testing.assert_close(held[4], plain[4], atol=1e-12, rtol=0)
    half = sample(make("guidance", "trajectory-blend", held=1), flow, x, **known)
    torch.testing.assert_close(half[:4, 0], planned[:4, 0], atol=1e-12, rtol=0)
    assert float((half[:4, 1] - planned[:4, 1]).abs().min()) > 1e-3
    # No previous chunk: the policy as it is.
    assert torch.equal(sample(make("guidance", "trajectory-blend"), flow, x), plain)


def test_the_step_of_a_time():
    at = Situation(grid=(0.0, 0.4, 1.0))
    assert [at.step(t) for t in (0.0, 0.2, 0.4, 0.7, 1.0)] == [(0.0, 0.4)] * 2 + [(0.4, 1.0)] * 3


def test_a_trajectory_blend_by_hand():
    guidance = make("guidance", "trajectory-blend", held=0, power=2.0)
    assert guidance.mask(4).tolist() == [0.25, 0.5, 0.75, 1.0]
    x, v, plan = noise(1), noise(1, 1), noise(1, 2)
    at = Situation(grid=(0.0, 0.4, 1.0), noise=x, planned=plan, begun=torch.tensor([True]))
    found = guidance.steer(x, torch.zeros(1, dtype=F64), at.step(0.0), lambda x: (v, v), at)
    w = plan - x
    cosine = float((v * w).sum() / (v.norm() * w.norm()))
    mask = torch.tensor([0.5, 1.0], dtype=F64).reshape(1, 2, 1)
    torch.testing.assert_close(found, w + mask * (1 - 0.6**2) * cosine * (v - w), atol=1e-12, rtol=0)


def test_composition_splits_and_multiplies():
    split = make("guidance", "compose", keys=("a", "b"), share=1.0)
    full = torch.tensor([[1.0, 0.0]])
    # The first opposes the full velocity and loses that part; the second agrees.
    parts = torch.tensor([[[-1.0, 1.0]], [[2.0, 0.0]]])
    weights = torch.tensor([0.0, 1.0]).div(0.2).softmax(0)
    expected = weights[0] * torch.tensor([0.0, 1.0]) + weights[1] * torch.tensor([2.0, 0.0])
    torch.testing.assert_close(split.aggregate(full, parts), expected.unsqueeze(0))
    torch.testing.assert_close(split.aggregate(full, parts.flip(0)), expected.unsqueeze(0))
    even = dataclasses.replace(split, temperature=1e6).aggregate(full, parts)
    torch.testing.assert_close(even, torch.tensor([[1.0, 0.5]]), atol=1e-5, rtol=0)
    random = noise(64, 4).flatten(1)
    many = torch.stack([noise(64, k).flatten(1) for k in range(5, 8)])
    assert float((split.aggregate(random, many) * random).sum(1).min()) > -1e-12

    flow, x = GaussianFlow.random(4, 5), noise()
    same = [network(flow), network(flow)]
    plain = sample(make("guidance", "none"), flow, x)
    for guidance in (split, make("guidance", "compose", keys=("a", "b"), how="product")):
        torch.testing.assert_close(sample(guidance, flow, x, parts=same), plain, atol=1e-12, rtol=0)
    product = make("guidance", "compose", keys=("a", "b"), how="product", scale=2.0)
    moved = sample(product, flow, x, parts=[network(flow, 0.1), network(flow, 0.02)])
    # v + 2 (0.1 + 0.02): parts move the velocity by their differences.
    shifted = sample(make("guidance", "none"), network(flow, 0.24), x)
    torch.testing.assert_close(moved, shifted, atol=1e-12, rtol=0)


def test_projection_meets_the_goal_and_a_gaussian_becomes_its_conditional():
    flow, goal = GaussianFlow.random(4, 6), read_goal(GOAL, *SHAPE)
    flow.mean *= 0.2
    rows, k = 300, 100
    a, mean = affine(flow, lambda s, h: 0.0, lambda data: flow.eye)
    small = noise(rows * k) * 0.1  # well inside the limits
    chunk = sample(make("guidance", "projection", goal=GOAL, samples=k, shrinkage=0.0), flow, small)
    assert float((chunk.flatten(1) @ goal.matrix.T - goal.value).abs().max()) < 1e-10
    covariance = a @ a.T
    gain = covariance @ goal.matrix.T @ torch.linalg.inv(goal.matrix @ covariance @ goal.matrix.T)
    expected = mean + gain @ (goal.value - goal.matrix @ mean)
    assert float(expected.abs().max()) < 0.9
    torch.testing.assert_close(chunk.flatten(1).mean(0), expected, atol=0.02, rtol=0)
    one = sample(make("guidance", "projection", goal=GOAL), flow, small[:9]).flatten(1)
    plain = sample(make("guidance", "none"), flow, small[:9]).flatten(1)
    shortest = plain - (plain @ goal.matrix.T - goal.value) @ torch.linalg.pinv(goal.matrix).T
    torch.testing.assert_close(one, shortest, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("n", "expected"), [(1, 0.0), (2, 0.5642), (5, 1.1630), (10, 1.5388)])
def test_the_best_of_n_is_the_largest_order_statistic(n, expected):
    guidance = make("guidance", "best-of-n", goal="a[0, 0] = 100", n=n)
    x = noise(4000 * n, seed=3)
    identity = lambda x, s, t: torch.zeros_like(x)  # noqa: E731
    best = sample(guidance, identity, x, 2)[:, 0, 0]
    assert abs(float(best.mean()) - expected) < 4 * 1.0 / 4000**0.5
    assert torch.equal(best, x.view(4000, n, 4)[:, :, 0].max(1).values)


class Scaled:
    """The flow of N(mean, std^2): its chunk is ``mean + std noise`` in one step of the exact map."""

    def __init__(self, std):
        self.std = std

    def __call__(self, x, s, t):
        return 0.2 + (self.std - 1) * x


def distance(guidance, flow, x):
    return read_goal("a[0] = 0.5, -0.5", *SHAPE).cost(sample(guidance, flow, x, 1))


def test_noise_optimisation_has_the_rate_of_the_closed_form():
    x, options = noise(), {"goal": "a[0] = 0.5, -0.5", "jacobian": "identity"}
    start = distance(make("guidance", "none"), Scaled(0.8), x)
    for rate, iterations in ((0.5, 1), (0.5, 3), (2.0, 2)):
        guidance = make("guidance", "noise-opt", rate=rate, iterations=iterations, **options)
        factor = (1 - rate * 0.8) ** (2 * iterations)  # converges where rate < 2 / std
        torch.testing.assert_close(distance(guidance, Scaled(0.8), x), factor * start, atol=1e-12, rtol=1e-9)
    once = make("guidance", "noise-opt", rate=1 / 0.8, iterations=1, **options)
    assert float(distance(once, Scaled(0.8), x).max()) < 1e-20


def test_gauss_newton_meets_the_goal_in_one_step_on_a_gaussian_flow():
    flow, x = GaussianFlow.random(4, 7), noise()
    guidance = make("guidance", "noise-opt", goal=GOAL, jacobian="gauss-newton", iterations=1, rate=1.0)
    chunk = sample(guidance, flow, x)
    goal = read_goal(GOAL, *SHAPE)
    assert float(goal.cost(chunk).max()) < 1e-18
    # The least change of the noise that does it.
    a = torch.stack([sample(make("guidance", "none"), flow, e.view(1, 2, 2)).flatten() for e in flow.eye])
    a = (a - sample(make("guidance", "none"), flow, torch.zeros(1, 2, 2, dtype=F64)).flatten()).T
    plain = sample(make("guidance", "none"), flow, x).flatten(1)
    least = (plain @ goal.matrix.T - goal.value) @ torch.linalg.pinv(goal.matrix @ a).T
    torch.testing.assert_close(chunk.flatten(1), plain - least @ a.T, atol=1e-9, rtol=0)


def test_the_shell_keeps_the_length_of_the_noise():
    x = noise()
    guidance = make("guidance", "noise-opt", goal=GOAL, shell=True, rate=1.0)
    flow = GaussianFlow.random(4, 8)
    at = Situation(grid=GRID, noise=x)
    moved = guidance.start(x, lambda start: sample(make("guidance", "none"), flow, start), at)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), atol=1e-12, rtol=0)
    assert float((moved - x).abs().min()) > 1e-4


@pytest.mark.parametrize(
    ("name", "options", "total"),
    [
        ("gradient", {}, 4),
        ("trajectory-blend", {}, 4),
        ("compose", {"keys": ("a", "b")}, 12),
        ("projection", {"samples": 3}, 12),
        ("best-of-n", {"n": 5}, 20),
        ("noise-opt", {"iterations": 2}, 12),
    ],
)
def test_evaluations_are_what_a_chunk_costs(name, options, total):
    guidance = make("guidance", name, **options)
    assert guidance.total(4) == total and guidance.budget(total) == 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient", {"strength": -1.0}),
        ("gradient", {"limit": 0.0}),
        ("trajectory-blend", {"held": -1}),
        ("trajectory-blend", {"power": 0.0}),
        ("compose", {"share": 2.0}),
        ("projection", {"samples": 2}),
        ("best-of-n", {"n": 0}),
        ("noise-opt", {"iterations": 0}),
        ("noise-opt", {"rate": 0.0}),
    ],
)
def test_options_without_meaning_are_refused(name, options):
    with pytest.raises(ConfigError, match=f"--flow.guidance({'|'.join(f'.{option}' for option in options)}| {name})"):
        make("guidance", name, **options)


@pytest.mark.parametrize(
    ("values", "nfe", "instead"),
    [
        ({"guidance": "gradient", "solver": "map", "consistency": "lsd"}, 1, "noise-opt or projection"),
        ({"guidance": "trajectory-blend", "solver": "map", "consistency": "lsd"}, 1, "--agent.nfe 2"),
        ({"guidance": "compose"}, 10, "KEY KEY"),
        ({"guidance": make("guidance", "compose", keys=("a",)), "solver": "map", "consistency": "lsd"}, 2, "euler"),
        ({"guidance": "noise-opt", "solver": "sde"}, 50, "euler"),
        ({"guidance": "gradient", "interpolant": "latent", "source": "student-t"}, 10, "guidance none"),
    ],
)
def test_what_does_not_go_together_is_refused(values, nfe, instead):
    spec = FlowSpec(**{axis: make(axis, v) if isinstance(v, str) else v for axis, v in values.items()})
    with pytest.raises(IncompatibleSpecError) as refusal:
        validate(spec, Setting(nfe=nfe))
    assert instead in refusal.value.fix
