"""Every environment as a plain Gymnasium one: ``flowpolicy.make_env``, and ``flowpolicy/NAME-v0`` in its registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, SupportsFloat, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.run_places import lies_here
from flowpolicy.core.seed import first_planned
from flowpolicy.core.spec import ImageSpec, ObservationSpec, load_contract
from flowpolicy.envs import ENVS, SuiteConfig, find_env, single_env
from flowpolicy.envs.arm_tasks import ARM_TASKS
from flowpolicy.envs.vector import SeeingEnv

NAMESPACE = "flowpolicy"
"""Of the registered names: ``flowpolicy/lift-v0``."""


class GymnasiumEnv(gymnasium.Env[dict[str, NDArray[Any]], NDArray[Any]]):
    """One environment: observations by name, float32 and uint8 pictures; ``info["success"]`` says whether it succeeded.

    ``reset(seed=s)`` starts the first initial state of the plan of ``s``, and every ``reset()`` after it the next one:
    the states of ``flowpolicy.evaluate(run, seed=s)``, in order. Never seeded, states are drawn.
    ``reset(options={"index": i})`` starts initial state ``i``.

    Args:
        config: which environment, with which pictures.
        render_mode: None, or 'rgb_array' for :meth:`render`.

    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, as Gymnasium declares it

    def __init__(self, config: SuiteConfig, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode='{render_mode}'", expected="'rgb_array' or None")
        self.render_mode, self._one = render_mode, single_env(config)
        self._spec, self._next, self._over = config.spec(), -1, True
        action = self._spec.action
        if action.rate_hz:
            self.metadata = {**self.metadata, "render_fps": round(action.rate_hz)}
        streams: dict[str, spaces.Space[Any]] = {key: _space(each) for key, each in self._spec.observation.items()}
        self.observation_space = cast(spaces.Space[dict[str, NDArray[Any]]], spaces.Dict(streams))
        self.action_space = spaces.Box(action.low, action.high, (action.size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin an episode; the observation, and the index of its initial state.

        Raises:
            ConfigError: an option other than ``index``, or a negative index.

        """
        super().reset(seed=seed)
        if unknown := set(options or ()) - {"index"}:
            raise ConfigError(f"reset takes no option {', '.join(map(str, unknown))}", expected='{"index": 7}')
        if seed is not None:
            self._next = first_planned(seed)
        index = (options or {}).get("index", self._next if self._next >= 0 else int(self.np_random.integers(2**31)))
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or index < 0:
            raise ConfigError(f"reset to the initial state {index!r}", expected="a whole number from 0 on")
        if self._next >= 0 and "index" not in (options or {}):
            self._next += 1
        self._over = False
        return self._seen(self._one.reset(int(index))), {"index": int(index)}

    def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], SupportsFloat, bool, bool, dict[str, Any]]:
        """One action (a,), in the environment's units.

        Raises:
            ConfigError: it is not of its shape, not finite, or the episode is over.

        """
        given = np.asarray(action, dtype=np.float64)
        if given.shape != self.action_space.shape or not np.isfinite(given).all():
            raise ConfigError(
                f"an action of shape {given.shape}{'' if np.isfinite(given).all() else ' with NaN or infinity'}",
                expected=f"{self.action_space.shape}, finite numbers; a chunk is executed action by action",
            )
        if self._over:
            raise ConfigError(
                "a step before the beginning or after the end of an episode", fix="obs, info = env.reset()"
            )
        done = self._one.step(np.asarray(action))
        terminated, truncated = bool(done.terminated), bool(done.truncated)
        self._over = terminated or truncated
        info = {"success": bool(done.success)}
        return self._seen(done.obs), float(done.reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """(height, width, 3) picture for people; None unless it was made with ``render_mode="rgb_array"``."""
        return self._one.render() if self.render_mode else None

    def close(self) -> None:
        """Free the simulator."""
        self._one.close()

    def _seen(self, obs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What was observed, with the pictures of this moment."""
        if self._spec.images:
            seeing: SeeingEnv = self._one  # type: ignore[assignment]  # as its spec says
            obs = {**obs, **seeing.look()}
        return {key: obs[key] for key in self._spec.observation}


def _space(spec: ObservationSpec) -> spaces.Box:
    if isinstance(spec, ImageSpec):
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, spec.shape, np.float32)


def make_env(
    env: str | os.PathLike[str], *, render_mode: str | None = None, allow_render_mismatch: bool = False
) -> GymnasiumEnv:
    """A Gymnasium environment, by its name or for a run. All are registered as ``flowpolicy/NAME-v0``.

    ::

        env, session = fp.make_env(run), fp.Session(fp.load_policy(run))
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(session.act(obs))

    Args:
        env: a name that ``flowpolicy train --env`` takes, such as 'lift'; or a run or its folder: what its policy was
            trained for, with its pictures. A name goes before a folder that is called so.
        render_mode: None, or 'rgb_array' for ``render()``.
        allow_render_mismatch: for a run, pictures that are drawn otherwise than in training.

    Raises:
        ConfigError: there is neither such an environment nor such a run, or nothing here simulates it.
        ContractError: the environment is not what the run was trained for.
        MissingExtraError: its simulator is not installed.

    """
    if not _is_run(env):
        return GymnasiumEnv(find_env(str(env)), render_mode)
    contract = load_contract(checkpoint.resolve(Path(env)) / "contract.json")
    config = find_env(contract.spec.env_id, contract.spec.images)
    fix = "act where the policy was trained for, or train for this environment"
    contract.require(config.spec(), "the environment", fix, allow_render_mismatch=allow_render_mismatch)
    return GymnasiumEnv(config, render_mode)


def _is_run(env: str | os.PathLike[str]) -> bool:
    return not isinstance(env, str) or (env not in ENVS and (not lies_here(env) or Path(env).exists()))


# Importing this module registers them: Gymnasium asks no other package for environments of its own accord.
for _name in sorted(ENVS.keys() - ARM_TASKS.keys()):
    gymnasium.register(f"{NAMESPACE}/{_name}-v0", entry_point=f"{__name__}:make_env", kwargs={"env": _name})
