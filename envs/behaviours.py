"""Who acts in a recording: a trained run, a function of the user's, or a plain network in a file of numbers.

A network file is an ``npz`` of arrays and texts, read without pickle: weights ``w0, b0, w1, b1, ...`` (out, in) and
(out,), ``nonlinearity`` 'tanh' or 'relu', ``squash`` (whether the output goes through tanh), and where there are any
``in_shift, in_scale`` of the observation, ``out_shift, out_scale`` of the action, and the logarithm of the deviation of
its Gaussian noise: ``log_std`` (a,), or ``w_log_std, b_log_std`` of the last hidden layer. The observation is all
states of the environment side by side, in its order.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ActionError, ConfigError, DataError
from flowpolicy.core.files import sha256
from flowpolicy.core.spec import Spec

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LARGEST_INPUT = 10.0
"""Where scaled inputs are clipped, as Stable-Baselines3 does; not where actions are scaled too, as in hand_dapg."""
_EPSILON = 1e-8


class Behaviour(Protocol):
    """Acts, one episode after the other."""

    def begin(self, seed: int) -> None:
        """Start an episode whose noise depends on ``seed`` alone."""

    def act(self, obs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """(a,) action in environment units for one observation, name -> (*shape)."""


@dataclasses.dataclass(frozen=True)
class BehaviourSource:
    """A behaviour as it is named on the command line; crosses to worker processes."""

    path: Path
    """Run or checkpoint folder, ``npz`` file, or ``module:function``."""

    @property
    def kind(self) -> str:
        """'network', 'function' or 'run'."""
        if self.path.suffix == ".npz":
            return "network"
        return "function" if _FUNCTION.fullmatch(str(self.path)) and not self.path.exists() else "run"

    @property
    def name(self) -> str:
        """What a file says of who acted."""
        return self.path.stem if self.kind == "network" else str(self.path)

    def facts(self) -> dict[str, str]:
        """For the provenance of a file."""
        if self.kind == "function":
            return {"function": str(self.path)}
        if self.kind == "network":
            return {"network": self.name, "sha256": sha256(self.path)}
        from flowpolicy.core.checkpoint import MANIFEST, resolve

        folder = resolve(self.path)
        return {"policy": str(folder), "policy_sha256": sha256(folder / MANIFEST)}

    def load(self, spec: Spec, noise_scale: float) -> Behaviour:
        """The behaviour, in this process.

        Args:
            spec: of the environment that it acts in.
            noise_scale: factor of its own noise.

        Raises:
            ConfigError: there is no such function, or its noise cannot be scaled.
            DataError: the file of numbers is none.
            ContractError: a run was trained for another environment.

        """
        if self.kind == "network":
            return NetworkBehaviour(self.path, spec, noise_scale)
        if self.kind == "function":
            if noise_scale != 1.0:
                raise ConfigError(
                    f"--noise-scale {noise_scale:g} with the function {self.path}, whose noise is its own affair",
                    fix="leave --noise-scale out; --action-noise adds noise to any behaviour",
                )
            return FunctionBehaviour(str(self.path))
        return RunBehaviour(self.path, spec, noise_scale)


class FunctionBehaviour:
    """A function of one observation, name -> array, and a NumPy generator; it returns the action.

    Args:
        name: ``module:function``; the module is imported, so that its code runs. It may lie in the working directory.

    """

    def __init__(self, name: str) -> None:
        module, _, path = name.partition(":")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the behaviour {name} cannot be imported: {error}",
                expected="module:function, of a module in this directory or an installed one",
            ) from error
        if not callable(found):
            raise ConfigError(f"{name} is no function", expected="a function of (observation, generator)")
        self._function: Callable[..., Any] = found
        self._name = name

    def begin(self, seed: int) -> None:
        """A generator of its own for every episode."""
        self._generator = np.random.default_rng(seed)

    def act(self, obs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """What the function says."""
        try:
            return np.asarray(self._function(dict(obs), self._generator), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ActionError(
                f"the behaviour {self._name} gave no action: {error}",
                expected="a function of (observation, generator) that returns numbers",
            ) from error


class NetworkBehaviour:
    """A plain network (see the module).

    Args:
        path: of the ``npz``.
        spec: of the environment.
        noise_scale: factor of its noise; 0 acts by its mean.

    """

    def __init__(self, path: Path, spec: Spec, noise_scale: float = 1.0) -> None:
        values = _read_numbers(path)
        self._values, self._scale = values, noise_scale
        self._depth = sum(bool(re.fullmatch(r"w\d+", name)) for name in values)
        self._tanh, self._squash = str(values.get("nonlinearity", "tanh")) == "tanh", bool(values.get("squash", False))
        size = sum(int(np.prod(each.shape)) for each in spec.observation.values() if each.kind == "state")
        _require_layers(path, values, self._depth, size, spec)
        if noise_scale and "log_std" not in values and "w_log_std" not in values:
            raise DataError(
                f"{path} holds no noise (log_std)", fix="--noise-scale 0, and --action-noise for noise of your own"
            )

    def begin(self, seed: int) -> None:
        """Noise of its own for every episode."""
        self._generator = np.random.default_rng(seed)

    def act(self, obs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Mean and noise, clipped to [-1, 1]."""
        values = self._values
        x = np.concatenate([np.ravel(value) for value in obs.values()]).astype(np.float32)
        scaled_actions = "out_scale" in values
        if "in_shift" in values:
            x = (x - values["in_shift"]) / (values["in_scale"] + _EPSILON)
            x = x if scaled_actions else np.clip(x, -_LARGEST_INPUT, _LARGEST_INPUT)
        for layer in range(self._depth - 1):
            x = values[f"w{layer}"] @ x + values[f"b{layer}"]
            x = np.tanh(x) if self._tanh else np.maximum(x, 0)
        last = self._depth - 1
        action = values[f"w{last}"] @ x + values[f"b{last}"]
        if scaled_actions:
            action = action * values["out_scale"] + values["out_shift"]
        if self._scale:
            action = action + self._scale * self._deviation(x) * self._generator.standard_normal(action.shape)
        return np.clip(np.tanh(action) if self._squash else action, -1.0, 1.0).astype(np.float32)

    def _deviation(self, hidden: NDArray[Any]) -> NDArray[Any]:
        values = self._values
        if "log_std" in values:
            return np.asarray(np.exp(values["log_std"]))
        log_std = values["w_log_std"] @ hidden + values["b_log_std"]
        return np.asarray(np.exp(np.clip(log_std, -20.0, 2.0)))


class RunBehaviour:
    """The policy of a run, by the one acting loop.

    Args:
        path: run folder (its newest checkpoint) or checkpoint folder.
        spec: of the environment.
        noise_scale: factor of the policy's initial noise.

    """

    def __init__(self, path: Path, spec: Spec, noise_scale: float = 1.0) -> None:
        from flowpolicy.core.checkpoint import resolve
        from flowpolicy.envs.policy_rollouts import load_alone
        from flowpolicy.policy.session import Session

        self._policy, self._session = load_alone(resolve(path)), Session
        self._policy.contract.require(spec, "the environment", "record in the environment that the run is for")
        self._scale = noise_scale

    def begin(self, seed: int) -> None:
        """A new session."""
        self._acting = self._session(self._policy, seed=seed, noise_scale=self._scale)

    def act(self, obs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The policy's next action."""
        return np.asarray(self._acting.act(dict(obs)))


def _read_numbers(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"{path} is not a file", expected="an npz of a network: w0, b0, w1, b1, ...")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(
            f"{path} is no npz of numbers: {error}", expected="arrays and texts, without Python objects"
        ) from error
    except Exception as error:  # zipfile has errors of its own for every way in which an archive is broken
        raise DataError(f"{path} cannot be read: {error}", fix="copy the file again") from error


def _require_layers(path: Path, values: Mapping[str, NDArray[Any]], depth: int, size: int, spec: Spec) -> None:
    """Refuse numbers that make no network from the observation to the action of an environment."""
    wanted = f"layers from {size} numbers to {spec.action.size}, for {spec.env_id}"
    width = size
    for layer in range(depth):
        weight, bias = values.get(f"w{layer}"), values.get(f"b{layer}")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise DataError(f"{path}: w{layer} and b{layer} are missing or make no layer", expected=wanted)
        if weight.shape[1] != width:
            raise DataError(f"{path}: w{layer} takes {weight.shape[1]} numbers after {width}", expected=wanted)
        width = weight.shape[0]
    if not depth or width != spec.action.size:
        raise DataError(f"{path} gives {width if depth else 'no'} numbers", expected=wanted)
    hidden = values[f"w{depth - 1}"].shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        "in_shift": (size,),
        "in_scale": (size,),
        "out_shift": (width,),
        "out_scale": (width,),
    }
    shapes |= {"log_std": (width,), "w_log_std": (width, hidden), "b_log_std": (width,)}
    for name, shape in shapes.items():
        if name in values and values[name].shape != shape:
            raise DataError(f"{path}: {name} has the shape {values[name].shape}", expected=f"{shape}")
    if bad := [name for name, value in values.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]:
        raise DataError(f"{path}: {bad[0]} holds NaN or infinity", expected="finite numbers")
    for first, second in (("in_shift", "in_scale"), ("out_shift", "out_scale"), ("w_log_std", "b_log_std")):
        if (first in values) != (second in values):
            raise DataError(f"{path} holds one of {first} and {second}", expected="both, or neither")
    if str(values.get("nonlinearity", "tanh")) not in ("tanh", "relu"):
        raise DataError(f"{path}: nonlinearity is '{values['nonlinearity']}'", expected="tanh or relu")
