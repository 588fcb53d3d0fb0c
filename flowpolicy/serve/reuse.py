"""Work that need not be done again: start from the last chunk, encode a frame once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
        return policy.normalizer.unaction(chunk.clamp(-1.0, 1.0))


class FeatureCache:
    """Encodes every frame once and keeps the features of a history: saves (o - 1) / o of an image encoder's time.

    Args:
        encoder: a module that maps one frame (1, *shape) to features (1, f), in eval mode, with an attribute
            ``per_frame = True``: it must not look at other frames.
        history: o, frames per decision.

    Raises:
        ConfigError: an encoder that mixes frames, or one in training mode, whose features change from call to call.

    """

    def __init__(self, encoder: nn.Module, history: int) -> None:
        if not getattr(encoder, "per_frame", False):
            raise ConfigError(
                f"{type(encoder).__name__} does not say that it encodes frames one by one",
                expected="per_frame = True",
                fix="encode the whole history at every decision",
            )
        if encoder.training:
            raise ConfigError(f"{type(encoder).__name__} is in training mode", fix="encoder.eval()")
        self._encode: Callable[[Tensor], Tensor] = encoder
        self._features: deque[Tensor] = deque(maxlen=history)
        self.history = history

    def reset(self) -> None:
        """Forget all frames: at the start of an episode."""
        self._features.clear()

    @torch.inference_mode()
    def push(self, frame: Float[Tensor, "1 *shape"]) -> Float[Tensor, "o f"]:
        """Features of the last frames, oldest first; the first frame of an episode fills the history."""
        feature = self._encode(frame)
        self._features.extend([feature] * (1 if self._features else self.history))
        return torch.cat(list(self._features))
