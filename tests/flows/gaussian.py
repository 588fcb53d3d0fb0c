"""Multivariate Gaussian flows in closed form, noise at 0."""

import torch

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


class GaussianFlow:
    """Data N(mean, covariance): the exact velocity field and the law of x_t, noise at 0."""

    def __init__(self, mean, covariance):
        self.mean, self.covariance = mean, covariance
        self.eye = torch.eye(len(mean), dtype=F64)

    @classmethod
    def random(cls, size, seed):
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(size, size, generator=generator, dtype=F64) / size**0.5
        return cls(torch.randn(size, generator=generator, dtype=F64), root @ root.T + 0.05 * torch.eye(size, dtype=F64))

    def at(self, t):
        return t**2 * self.covariance + (1 - t) ** 2 * self.eye

    def gain(self, t):
        """Jacobian of the velocity in x."""
        return (t * self.covariance - (1 - t) * self.eye) @ torch.linalg.inv(self.at(t))

    def field(self, x, t):
        time = float(t[0])
        return self.mean + (x - time * self.mean) @ self.gain(time).T

    def draw(self, count, t, seed=0):
        """x_t of ``count`` actions, and the times."""
        noise = torch.randn(2, count, len(self.mean), generator=torch.Generator().manual_seed(seed), dtype=F64)
        action = self.mean + noise[0] @ torch.linalg.cholesky(self.covariance).T
        return (1 - t) * noise[1] + t * action, torch.full((count,), t, dtype=F64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
