"""Real-time chunking at inference time: a policy that was not trained for it continues its previous chunk."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import Contract
from flowpolicy.flows.real_time import GUIDANCE_LIMIT, guided, soft_mask
from flowpolicy.flows.solvers import SolverName, integrate, steps_for
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.policy import Policy


class GuidedPolicy:
    """Pseudo-inverse guidance (arXiv 2506.07339) around a policy that integrates a velocity.

    The committed rows are pulled to what they are, those that the previous chunk planned as well, less and less; a
    backward pass per evaluation. Committed rows then are put in exactly. Without committed actions it is the policy
    itself, bit for bit.

    Args:
        policy: with the solver 'euler', 'midpoint' or 'heun', one candidate, at least two steps.
        limit: largest strength.

    Raises:
        ConfigError: a policy that has no intermediate states to guide.

    """

    def __init__(self, policy: Policy, limit: float = GUIDANCE_LIMIT) -> None:
        config = policy.config
        if config.sampler not in ("euler", "midpoint", "heun") or config.candidates > 1 or config.decorated:
            raise ConfigError(
                f"guidance of a policy with the sampler '{config.sampler}' and {config.candidates} candidate(s)",
                expected="a velocity that a solver integrates in several steps",
                fix="train the policy to continue committed actions: --agent.prefix N",
            )
        self.policy, self.limit = policy, limit

    @property
    def contract(self) -> Contract:
        """The policy's."""
        return self.policy.contract

    @property
    def evaluations(self) -> int:
        """Network evaluations so far."""
        return self.policy.evaluations

    def act(
        self,
        obs: dict[str, Tensor],
        generator: torch.Generator,
        nfe: int | None = None,
        committed: Committed | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Chunks that continue the committed actions; arguments of :meth:`Policy.act`."""
        if committed is None:
            return self.policy.act(obs, generator, nfe)
        policy, solver = self.policy, cast(SolverName, self.policy.config.sampler)
        nfe = policy.contract.nfe if nfe is None else nfe
        noise = torch.randn(committed.action.shape, generator=generator, device=committed.action.device)
        with torch.no_grad():
            cond = policy.condition(policy.observed(obs))
            target = policy.normalizer.action(committed.action)
            weight = soft_mask(committed.length, committed.overlap, noise.shape[1])
            steered = guided(lambda x, t: policy.evaluate(x, t, t, cond), target, weight, self.limit)
            chunk = policy.normalizer.within(integrate(steered, noise, steps_for(nfe, solver), solver))
            return committed.impose(policy.normalizer.unaction(chunk))
