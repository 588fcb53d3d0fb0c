"""Relative trajectory balance on the Gaussian flow with a linear reward, where everything is known."""

import pytest
import torch

from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.trajectory_balance import kernels, noised_path, path_log_ratio, trajectory_balance

F64 = torch.float64
MEAN = torch.tensor([[0.2, -0.1]], dtype=F64)
STD = torch.tensor([[0.3, 0.6]], dtype=F64)
TILT = torch.tensor([[1.5, -0.7]], dtype=F64)
"""Reward over temperature is TILT . a; the KL-optimal law has the mean MEAN + STD^2 TILT."""
VALID = torch.ones(16, 1, dtype=torch.bool)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed), dtype=F64)


def spread(t):
    """Variance of x_t."""
    return t**2 * STD**2 + (1 - t) ** 2


def residual(n):
    """Variance of the chunk given x_t, at the starts of n steps."""
    t = torch.arange(n, dtype=F64).reshape(-1, 1, 1) / n
    return STD**2 * (1 - t) ** 2 / spread(t)


def denoised(x, t, mean):
    """E[chunk | x_t] of a Gaussian law with the deviation STD."""
    return mean + t * STD**2 / spread(t) * (x - t * mean)


def trajectories(n, seed=0):
    """Candidates of the reference, trajectories that end in them, and both exact predictions along them."""
    chunk = MEAN + STD * random(16, 8, 1, 2, seed=seed)
    states = noised_path(chunk, random(16, n, 8, 1, 2, seed=seed + 1))
    t = torch.arange(n, dtype=F64).reshape(1, n, 1, 1, 1) / n
    known, tilted = (denoised(states[:, :-1], t, mean) for mean in (MEAN, MEAN + STD**2 * TILT))
    return chunk, states, known, tilted


def reward(chunk):
    return (chunk * TILT).sum((2, 3))


@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_every_trajectory_is_in_balance_at_the_tilted_optimum(n):
    """The log-ratio of any trajectory is r / tau - log Z, for any number of steps, and there is no gradient."""
    chunk, states, known, tilted = trajectories(n)
    tilted.requires_grad_()
    scores = path_log_ratio(states, tilted, known, kernels(residual(n)), VALID)
    log_z = float((TILT * MEAN).sum() + 0.5 * (TILT**2 * STD**2).sum())
    assert torch.allclose(scores, reward(chunk) - log_z, atol=1e-9)
    loss = trajectory_balance(scores, reward(chunk), 1.0)
    assert float(loss.detach().max()) < 1e-16
    assert float(torch.autograd.grad(loss.sum(), tilted)[0].abs().max()) < 1e-7
    away = path_log_ratio(states, tilted.detach() + 0.05, known, kernels(residual(n)), VALID)
    assert float(trajectory_balance(away, reward(chunk), 1.0).mean()) > 1e-3


def test_steps_have_the_law_of_the_noising_process_turned_round():
    """Moments of x_t | x_s of the simulated backward process, against mean and variance of the kernels."""
    n, count = 4, 200_000
    chunk = MEAN + STD * random(1, count, 1, 2, seed=5)
    states = noised_path(chunk, random(1, n, count, 1, 2, seed=6))
    chain = kernels(residual(n))
    for k in range(n):
        x, t = states[0, k], float(chain.start[k])
        gap = states[0, k + 1] - chain.keep[k] * x - chain.reach[k] * denoised(x, t, MEAN)
        assert float(gap.mean(0).abs().max()) < 5e-3
        assert torch.allclose(gap.var(0), chain.variance[k], rtol=0.02)
        assert float((gap * (x - x.mean(0))).mean(0).abs().max()) < 5e-3
        assert torch.allclose(x.var(0), spread(torch.tensor(t)), rtol=0.02)
    # Memoryless: the noise at the start says nothing about the chunk.
    assert float(((states[0, 0] - states[0, 0].mean(0)) * (chunk[0] - chunk[0].mean(0))).mean(0).abs().max()) < 0.01


def test_without_the_reference_s_uncertainty_the_chain_is_too_narrow():
    """Ten steps: 56 % of the variance at the deviation 0.3, and the tilt with it; the reason for ``residual``."""

    def variance(chain, deviation):
        total = 1.0
        for k in range(10):
            t = float(chain.start[k])
            gain = t * deviation**2 / (t**2 * deviation**2 + (1 - t) ** 2)
            total = float(chain.reach[k] * gain + chain.keep[k]) ** 2 * total + float(chain.variance[k].flatten()[0])
        return total / deviation**2

    assert variance(kernels(residual(10)), 0.3) == pytest.approx(1.0, abs=1e-9)
    assert variance(kernels(torch.zeros(10, 1, 2, dtype=F64)), 0.3) < 0.6


def test_the_group_s_mean_gives_the_gradient_of_the_best_log_z():
    """VarGrad: the loss with log Z at its optimum, held constant, has the same gradient."""
    scores, rewards = random(3, 8).requires_grad_(), random(3, 8, seed=1)
    own = torch.autograd.grad(trajectory_balance(scores, rewards, 0.7).sum(), scores)[0]
    log_z = -(scores - rewards / 0.7).mean(1, keepdim=True).detach()
    fixed = torch.autograd.grad((log_z + scores - rewards / 0.7).square().mean(1).sum(), scores)[0]
    assert torch.allclose(own, fixed, atol=1e-12)
    shifted = trajectory_balance(scores, rewards + 5.0, 0.7)
    assert torch.allclose(shifted, trajectory_balance(scores, rewards, 0.7), atol=1e-12)


def test_steps_past_the_episode_count_nothing():
    _, states, known, tilted = trajectories(3)
    none = torch.zeros(16, 1, dtype=torch.bool)
    assert torch.equal(path_log_ratio(states, tilted, known, kernels(residual(3)), none), torch.zeros(16, 8, dtype=F64))
    same = path_log_ratio(states, known, known, kernels(residual(3)), VALID)
    assert torch.equal(same, torch.zeros(16, 8, dtype=F64))
