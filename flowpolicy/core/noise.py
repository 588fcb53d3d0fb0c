"""Laws of the noise that a chunk starts from, drawn by torch in training and by NumPy where there is no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


_LARGE = 1e6  # scales and degrees of freedom beyond it are damage, not a law


class NoiseLaw(NamedTuple):
    """Independent entries with mean 0, times ``scale``, and divided by one ``sqrt(chi^2(dof) / dof)`` per row."""

    entries: Literal["normal", "laplace", "uniform"] = "normal"
    """Law of an entry: N(0, 1), the Laplace law of variance 1, or uniform on [-sqrt 3, sqrt 3]."""
    scale: float = 1.0
    """Factor."""
    dof: float | None = None
    """Degrees of freedom of the rows, which makes normal entries a multivariate Student-t; None divides by nothing."""

    @classmethod
    def fits(cls, entries: Any = None, scale: Any = None, dof: Any = None, **more: Any) -> bool:
        """Whether values from a file describe a law."""

        def moderate(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _LARGE

        known = entries in ("normal", "laplace", "uniform") and not more
        return known and moderate(scale) and (dof is None or moderate(dof))

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Noise of ``shape``, rows first, on the generator's device."""
        import torch

        if self.entries == "normal":
            noise = torch.randn(shape, generator=generator, device=generator.device)
        else:
            noise = _shaped(torch.rand(shape, generator=generator, device=generator.device) - 0.5, self.entries)
        if self.scale != 1:
            noise = self.scale * noise
        if self.dof is None:
            return noise
        half = torch.full(shape[:1], self.dof / 2, device=generator.device)
        chi_squared = 2 * torch._standard_gamma(half, generator=generator)
        return noise / (chi_squared / self.dof).sqrt().reshape(-1, *[1] * (len(shape) - 1))

    def sample_numpy(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        """The same law, other numbers."""
        if self.entries == "normal":
            noise = rng.standard_normal(shape, dtype=np.float32)
        else:
            noise = np.asarray(_shaped(rng.random(shape, dtype=np.float32) - np.float32(0.5), self.entries))
        if self.scale != 1:
            noise = np.float32(self.scale) * noise
        if self.dof is None:
            return noise
        radius = np.sqrt(rng.chisquare(self.dof, shape[0]) / self.dof).astype(np.float32)
        scaled: NDArray[np.float32] = noise / radius.reshape(-1, *[1] * (len(shape) - 1))
        return scaled


def _shaped(share: Any, entries: str) -> Any:
    """Entries from numbers uniform on [-1/2, 1/2): arrays of torch or of NumPy."""
    if entries == "uniform":
        return math.sqrt(12) * share
    tail = (1 - 2 * abs(share)).clip(1e-7)  # never the logarithm of 0
    sign, log = (share.sign(), tail.log()) if hasattr(share, "sign") else (np.sign(share), np.log(tail))
    return -sign * log / math.sqrt(2)
