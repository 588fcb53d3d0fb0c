"""Scale observations and actions, per key and dimension, fitted once and stored with the policy."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.ranges import Range, require_ranges
from flowpolicy.data.dataset import Dataset

Scaling = Literal["standard", "minmax", "quantile", "none"]
ActionScaling = Literal["minmax", "none"]

_NEAR_CONSTANT = 1e-4
_ROUND_OFF = 1e-6  # of float32, with room for a file that was converted once or twice
_BLOCK = 1 << 16
_QUANTILES = (0.01, 0.99)


@dataclasses.dataclass(frozen=True)
class NormalizerConfig:
    """How to scale."""

    obs: Scaling = "standard"
    """Observations: 'standard' (mean 0, deviation 1), 'minmax' or 'quantile' (1 % and 99 %) to [-1, 1], 'none'."""
    action: ActionScaling = "minmax"
    """Actions: 'minmax' (the range of the data to [-1, 1]), or 'none' for data that lie in [-1, 1] already. Policies
    act within [-1, 1], so no other scaling would let them say every action of the data."""
    per_key: dict[str, Scaling] = dataclasses.field(default_factory=dict)
    """Observation keys that are scaled otherwise than ``obs`` says, e.g. 'robot0_eef_quat none'."""
    limit: Annotated[float, Range(0, above=True, infinite=True)] = 5.0
    """Scaled observations are clamped to +- this, so that a dimension that hardly varied in the data, such as the
    tilt of a standing object, does not swamp the network when it does."""

    def __post_init__(self) -> None:
        require_ranges(self, "--normalizer.")
        if self.action not in get_args(ActionScaling):  # what is no Literal here would pass from Python
            raise ConfigError(
                f"--normalizer.action is '{self.action}', which would leave actions of the data outside [-1, 1]",
                expected="minmax, or none for actions that lie in [-1, 1] already",
                fix="leave --normalizer.action out",
            )


class Normalizer(nn.Module):
    """``y = (x - offset) * scale`` for every observation key and for actions, clamped to ``limit``.

    Actions of the data lie in [-1, 1], whatever the scaling, so that a policy can say all of them. A dimension that
    never varied is 0 there, and comes back as the constant of the data, exactly, whatever a network says.

    An observation whose spread (deviation, or half the range) is below 1e-4 of max(1, |centre|) is 0 too: dividing
    by the spread would blow up noise, and a network never learned what another value would mean.

    Args:
        obs: width of each observation key.
        action: number of action dimensions.

    """

    def __init__(self, obs: Mapping[str, int], action: int) -> None:
        super().__init__()
        self.obs_scaling = nn.ModuleDict({_module_name(name): _Affine(width) for name, width in obs.items()})
        self.action_scaling = _Affine(action)

    @classmethod
    def fit(cls, dataset: Dataset, config: NormalizerConfig) -> Normalizer:
        """Fit to every row of a dataset, block by block where it is memory-mapped.

        Warns once, naming key and dimensions, when some are near-constant.

        Raises:
            ConfigError: ``per_key`` names an observation that the dataset does not have, or actions are not to be
                scaled and leave [-1, 1].

        """
        columns = dataset.steps[keys.OBS]
        for name in config.per_key:
            if name not in columns:
                raise ConfigError(f"--normalizer.per-key names '{name}'", expected=nearest(name, columns))
        normalizer = cls({name: column.shape[1] for name, column in columns.items()}, dataset.spec.action.size)
        constant = {}
        for name, column in columns.items():
            scaling = cast(_Affine, normalizer.obs_scaling[_module_name(name)])
            spec = dataset.spec.observation.get(name)
            usual: Scaling = "none" if spec is not None and spec.words else config.obs  # 0 and 1 stay what they are
            constant[f"{keys.OBS}/{name}"] = scaling.fit(column, config.per_key.get(name, usual), config.limit)
        constant[keys.ACTION] = normalizer.action_scaling.fit_action(dataset.steps[keys.ACTION], config.action)
        named = [f"{key} {dims}" for key, dims in constant.items() if dims]
        if named:
            warnings.warn(
                f"{dataset.path}: near-constant dimensions: {', '.join(named)}; observations among them are left out, "
                "actions are always the constant",
                stacklevel=2,
            )
        return normalizer

    def obs(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise and clamp observations, name -> (..., d); keys that the normaliser does not know are left out."""
        known = {name: _module_name(name) for name in obs if _module_name(name) in self.obs_scaling}
        return {name: self.obs_scaling[module](obs[name]) for name, module in known.items()}

    def observation(self, name: str) -> _Affine:
        """Offset, scale and limit of an observation key."""
        return cast(_Affine, self.obs_scaling[_module_name(name)])

    def action(self, action: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Environment units to normalised units."""
        scaled: Tensor = self.action_scaling(action)
        return scaled

    def unaction(self, action: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Normalised units to environment units; inverse of :meth:`action` to float32 round-off."""
        return action / self.action_scaling.scale + self.action_scaling.offset

    def within(self, action: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Normalised actions clamped to what the data reach: [-1, 1], and 0 in dimensions that never varied."""
        bound = self.action_scaling.limit.clamp(max=1.0)
        return action.clamp(-bound, bound)


class _Affine(nn.Module):
    """Offset, scale and limit of one key."""

    offset: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("limit", torch.full((width,), math.inf))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return ((x - self.offset) * self.scale).clamp(-self.limit, self.limit)

    def fit(self, column: Float[Tensor, "n d"], scaling: Scaling, limit: float) -> list[int]:
        """Set offset, scale and limit of an observation; returns the dimensions that are near-constant."""
        if scaling == "none":
            return []
        if scaling == "standard":
            center, spread = moments(column)
        else:
            low, high = _range(column) if scaling == "minmax" else _quantiles(column)
            center, spread = (low + high) / 2, (high - low) / 2
        return self._set(center, spread, near_constant(center, spread), limit)

    def fit_action(self, column: Float[Tensor, "n d"], scaling: ActionScaling) -> list[int]:
        """Set offset, scale and limit of actions; returns the dimensions that never varied."""
        low, high = _range(column)
        center, spread = (low + high) / 2, (high - low) / 2
        # However small a spread is, its inverse undoes it: only what round-off alone can have moved is a constant.
        constant = spread <= _ROUND_OFF * center.abs()
        if scaling == "minmax":
            return self._set(center, spread, constant, math.inf)
        outside = (torch.maximum(low.abs(), high.abs()) > 1).nonzero().flatten().tolist()
        if outside:
            dim = outside[0]
            raise ConfigError(
                f"--normalizer.action none: action dimension {dim} reaches from {low[dim]:g} to {high[dim]:g}",
                expected="actions in [-1, 1], which is all that a policy can say unscaled",
                fix="leave --normalizer.action out",
            )
        return self._set(torch.where(constant, center, 0.0), torch.ones_like(spread), constant, math.inf)

    def _set(self, center: Tensor, spread: Tensor, constant: Tensor, limit: float) -> list[int]:
        self.offset.copy_(center)
        self.scale.copy_(torch.where(constant, 1.0, 1.0 / spread))
        self.limit.copy_(torch.where(constant, 0.0, limit))
        return constant.nonzero().flatten().tolist()


def _module_name(name: str) -> str:
    """A module name for an observation key: no dot, and never an attribute of ModuleDict."""
    return "obs/" + name.replace(".", "/")


def near_constant(center: Float64[Tensor, " d"], spread: Float64[Tensor, " d"]) -> Bool[Tensor, " d"]:
    """Dimensions whose spread is below 1e-4 of max(1, |centre|)."""
    return spread < _NEAR_CONSTANT * center.abs().clamp(min=1.0)


def moments(column: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Mean and deviation in two passes: the one-pass formula cancels where the mean is large."""
    rows = column.shape[0]
    mean = torch.stack([block.double().sum(0) for block in column.split(_BLOCK)]).sum(0) / rows
    square = torch.stack([(block.double() - mean).square().sum(0) for block in column.split(_BLOCK)]).sum(0) / rows
    return mean, square.sqrt()


def _range(column: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    low = torch.stack([block.amin(0) for block in column.split(_BLOCK)]).amin(0)
    high = torch.stack([block.amax(0) for block in column.split(_BLOCK)]).amax(0)
    return low.double(), high.double()


def _quantiles(column: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Exact quantiles with linear interpolation; one dimension in memory at a time."""
    ordered = (column[:, d].sort().values for d in range(column.shape[1]))
    pairs = [[_interpolate(values, q) for q in _QUANTILES] for values in ordered]
    low, high = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return low, high


def _interpolate(ordered: Float[Tensor, " n"], quantile: float) -> float:
    position = quantile * (ordered.shape[0] - 1)
    below = int(position)
    above = min(below + 1, ordered.shape[0] - 1)
    return float(torch.lerp(ordered[below].double(), ordered[above].double(), position - below))
