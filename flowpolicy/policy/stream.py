"""Stream batch: several chunks in flight at staggered flow times, one network call per control tick.

After StreamDiffusion (Kodaira et al. 2023, arXiv 2312.12491), for policies of several evaluations: a tick costs one
call with K rows instead of K calls with one.
"""

from __future__ import annotations

from collections import deque

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.policy.policy import Policy


class StreamBatch:
    """One robot's chunks in flight.

    Every tick starts a chunk from fresh noise, moves all chunks in flight by one step and finishes the oldest, which
    was started K - 1 ticks before.

    Args:
        policy: with the sampler 'euler' (steps) or 'map' (jumps) and one candidate.
        steps: K, chunks in flight; at least 2, with one there is nothing to overlap.
        refresh: every chunk moves by the newest observation, so that the finished one has seen it in its last step.
            False keeps the observation that each was started with: then the chunks equal those that the policy
            generates one after the other, but for rounding.

    Raises:
        ConfigError: a policy that cannot be streamed.

    """

    def __init__(self, policy: Policy, steps: int, *, refresh: bool = True) -> None:
        config = policy.config
        if steps < 2 or config.sampler not in ("euler", "map") or config.candidates > 1 or config.decorated:
            raise ConfigError(
                f"a stream of {steps} steps with the sampler '{config.sampler}'",
                expected="at least 2 steps of 'euler' or 'map', one candidate",
                fix="ask a one-step policy once per tick: nothing is faster",
            )
        self.policy, self.steps, self.refresh = policy, steps, refresh
        self._chunks: deque[Tensor] = deque()
        self._conds: deque[Tensor] = deque()

    def reset(self) -> None:
        """Forget the chunks in flight: at the start of an episode."""
        self._chunks.clear()
        self._conds.clear()

    def decide(
        self, obs: dict[str, Tensor], generator: torch.Generator, nfe: int | None, executed: int
    ) -> Float[Tensor, "1 h a"]:
        """The chunk that is finished; see :class:`flowpolicy.policy.reuse.Decider`.

        Before the first one is, while the stream fills, the policy is asked in the usual way.
        """
        contract = self.policy.contract
        noise = torch.randn(
            (1, contract.chunk, contract.spec.action.size), generator=generator, device=generator.device
        )
        finished = self.tick(obs, noise)
        return self.policy.act(obs, generator, self.steps) if finished is None else finished

    @torch.inference_mode()
    def tick(self, obs: dict[str, Tensor], noise: Float[Tensor, "1 h a"]) -> Float[Tensor, "1 h a"] | None:
        """Start a chunk, move all, finish one.

        Args:
            obs: name -> (1, o, *shape), as :meth:`Policy.act` takes them.
            noise: where the new chunk starts.

        Returns:
            The finished chunk in environment units; None in the first K - 1 ticks.

        """
        cond = self.policy.condition(self.policy.observed(obs))
        self._chunks.append(noise)
        self._conds.append(cond)
        if self.refresh:
            self._conds = deque([self._conds[-1]] * len(self._conds))
        x, cond = torch.cat(list(self._chunks)), torch.cat(list(self._conds))
        done = torch.arange(len(x) - 1, -1, -1, device=x.device, dtype=x.dtype)
        s, t = done / self.steps, (done + 1) / self.steps
        x = x + self.policy.evaluate(x, s, t, cond) / self.steps
        self._chunks = deque(x.split(1))
        if len(x) < self.steps:
            return None
        self._conds.popleft()
        normalizer = self.policy.normalizer
        finished: Tensor = normalizer.unaction(normalizer.within(self._chunks.popleft()))
        return finished
