"""Start from the last chunk: what has hardly changed need not be generated from pure noise."""

from __future__ import annotations

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.solvers import EVALUATIONS_PER_STEP, SolverName, integrate, jump
from flowpolicy.policy.policy import Policy


class WarmStart:
    """Starts from the shifted previous chunk instead of pure noise, the closer to it the less has moved.

    ``x = (1 - t) noise + t previous`` at the flow time ``t = t_max (1 - |d obs| / kappa)``, smoothed over decisions,
    and exactly 0, a full generation, from a motion of kappa on; only the rest of the way is integrated, with
    accordingly fewer evaluations. After the motion-aware controller of StreamDiffusionV2 (arXiv 2511.07399).

    Args:
        policy: that integrates a velocity or jumps, one candidate.
        kappa: motion from which on the generation is full, in normalised units.
        t_max: latest start.
        smoothing: weight of the previous start.

    Raises:
        ConfigError: a policy that has no path to start on.

    """

    def __init__(self, policy: Policy, kappa: float, t_max: float = 0.6, smoothing: float = 0.1) -> None:
        config = policy.config
        if config.sampler not in EVALUATIONS_PER_STEP or config.candidates > 1 or config.decorated:
            raise ConfigError(
                f"a warm start of the sampler '{config.sampler}' with {config.candidates} candidate(s)",
                expected="a velocity or a flow map, one candidate",
            )
        if not kappa > 0 or not 0 <= t_max < 1 or not 0 <= smoothing < 1:
            raise ConfigError(f"a warm start with kappa {kappa}, t_max {t_max}, smoothing {smoothing}")
        self.policy, self.kappa, self.t_max, self.smoothing = policy, kappa, t_max, smoothing
        self.reset()

    def reset(self) -> None:
        """Forget the last decision: at the start of an episode."""
        self._last: Tensor | None = None
        self._chunk: Tensor | None = None
        self._start = 0.0

    def start(self, obs: Float[Tensor, " n"]) -> float:
        """Flow time to start from for a normalised observation, in [0, t_max]; the first time 0."""
        motion = math.inf if self._last is None else float((obs - self._last).norm())
        self._last = obs
        if motion >= self.kappa:
            self._start = 0.0
        else:
            fresh = self.t_max * (1 - motion / self.kappa)
            self._start = (1 - self.smoothing) * fresh + self.smoothing * self._start
        return self._start

    def decide(
        self, obs: dict[str, Tensor], generator: torch.Generator, nfe: int | None, executed: int
    ) -> Float[Tensor, "1 h a"]:
        """Start from the last chunk without the ``executed`` rows; see :class:`flowpolicy.policy.reuse.Decider`."""
        contract, previous = self.policy.contract, None
        if self._chunk is not None:
            # Beyond the plan its last action is the best guess.
            kept = self._chunk[:, min(executed, contract.chunk - 1) :]
            previous = torch.cat([kept, kept[:, -1:].expand(-1, contract.chunk - kept.shape[1], -1)], dim=1)
        noise = torch.randn(
            (1, contract.chunk, contract.spec.action.size), generator=generator, device=generator.device
        )
        self._chunk = self.act(obs, noise, contract.nfe if nfe is None else nfe, previous)
        return self._chunk

    @torch.inference_mode()
    def act(
        self,
        obs: dict[str, Tensor],
        noise: Float[Tensor, "1 h a"],
        nfe: int,
        previous: Float[Tensor, "1 h a"] | None,
    ) -> Float[Tensor, "1 h a"]:
        """A chunk in environment units.

        Args:
            obs: name -> (1, o, *shape).
            noise: initial noise.
            nfe: evaluations of a full generation; a later start takes its share of them, at least one step.
            previous: the previous chunk, shifted so that row 0 is the action after the observation; environment
                units. None generates in full.

        """
        policy, sampler = self.policy, self.policy.config.sampler
        obs = policy.observed(obs)
        start = self.start(policy.normalized(obs)[0])
        x = noise
        if previous is None:
            start = 0.0
        else:
            x = (1 - start) * noise + start * policy.normalizer.action(previous)
        cost = EVALUATIONS_PER_STEP[sampler]
        steps = max(1, math.ceil((1 - start) * nfe / cost - 1e-9))
        cond = policy.condition(obs)
        if sampler == "map":
            chunk = jump(lambda x, s, t: policy.evaluate(x, s, t, cond), x, steps, start)
        else:
            solver = cast(SolverName, sampler)
            chunk = integrate(lambda x, t: policy.evaluate(x, t, t, cond), x, steps, solver, start)
        return policy.normalizer.unaction(policy.normalizer.within(chunk))
