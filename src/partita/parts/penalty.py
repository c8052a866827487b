"""The slot `regularisers` of the replay loop: what else is in the losses of actor and critics?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.limits import check_count, check_least
from partita.core.part import Domain, Part
from partita.core.spaces import Box
from partita.core.transitions import Transitions
from partita.policies.agent import Agent


class Penalty(Part):
    """A term added to the loss of the actor, of the critics, or both; None where it has nothing to say."""

    slot: ClassVar[str] = "regularisers"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)

    def start(self, store: Any, agent: Agent) -> None:
        """Called once before the first update, with the logged data (if any) in the store."""

    def metrics(self) -> dict[str, float]:
        """What to watch of it over a step of the loop."""
        return {}

    def actor(self, agent: Agent, batch: Transitions) -> Tensor | None:
        """A term of the actor's loss, scalar."""
        return None

    def critic(self, agent: Agent, batch: Transitions) -> Tensor | None:
        """A term of the critics' loss, scalar."""
        return None


@dataclass(frozen=True)
class NearData(Penalty):
    """Squared distance from the logged action.

        weight * mean |pi(s) - a|^2

    the mean being over entries of the action too (Fujimoto and Gu, 2021, arXiv:2106.06860, eq. 3).
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_least("regularisers.weight", self.weight)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Box):
            return f"regularisers near_data needs real-valued actions, and task {task.part_name()} has none"
        return None

    def actor(self, agent: Agent, batch: Transitions) -> Tensor:
        return self.weight * batch.mean((agent.mode(batch.obs) - batch.action).square().mean(-1))


@dataclass(frozen=True)
class Conservative(Penalty):
    """Conservative Q-learning: the soft maximum of Q down, Q of the data up (Kumar et al., 2020, arXiv:2006.04779).

        weight * sum_k mean (log sum_a exp Q_k(s, a) - Q_k(s, a_data))                   (eq. 4, CQL(H))

    For real-valued actions the sum is estimated from `samples` uniform actions and as many of the policy at s and at
    s', each divided by its density (appendix F).
    """

    weight: float = 5.0
    samples: int = 10

    def __post_init__(self) -> None:
        check_least("regularisers.weight", self.weight)
        check_count("regularisers.samples", self.samples)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if recipe.head(task) == "deterministic":
            return "regularisers conservative needs a policy that draws actions; use it with sac, not td3"
        return None

    def critic(self, agent: Agent, batch: Transitions) -> Tensor:
        given = agent.q(batch.obs, batch.action)
        if agent.discrete:
            high = agent.q(batch.obs).logsumexp(-1)
        else:
            high = self._soft_maximum(agent, batch)
        return self.weight * batch.mean(high - given).sum()

    def _soft_maximum(self, agent: Agent, batch: Transitions) -> Tensor:
        """log of the integral of exp Q_k(s, a) over a in [-1, 1]^A, (K, N), importance-sampled."""
        count, size = self.samples, batch.action.shape[-1]
        obs, later = (x.repeat_interleave(count, 0) for x in (batch.obs, batch.next_obs))
        with torch.no_grad():
            flat = torch.rand((len(obs), size), generator=agent.generator, device=agent.generator.device) * 2 - 1
            here, here_logp = agent.draw(obs)
            there, there_logp = agent.draw(later)
        assert here_logp is not None and there_logp is not None
        tried = torch.cat((flat.to(obs.device), here, there))
        density = torch.cat((torch.full_like(here_logp, -size * math.log(2)), here_logp, there_logp))
        q = agent.q(obs.repeat(3, 1), tried) - density
        return q.unflatten(1, (3, len(batch), count)).transpose(1, 2).flatten(2).logsumexp(-1) - math.log(3 * count)


@dataclass(frozen=True)
class Diversity(Penalty):
    """Slopes of the critics at logged actions pushed apart, as in EDAC.

        weight / (K - 1) * mean sum_{i != j} <g_i, g_j>,    g_k = grad_a Q_k(s, a) / |grad_a Q_k(s, a)|

    (An et al., 2021, arXiv:2110.01548).
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_least("regularisers.weight", self.weight)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Box):
            return f"regularisers diversity needs real-valued actions, and task {task.part_name()} has none"
        if recipe.critic is None or recipe.critic.members < 2:
            return "regularisers diversity needs several critics; give --critic.members 2 or more"
        return None

    def critic(self, agent: Agent, batch: Transitions) -> Tensor:
        members = agent.policy.settings.critics or 1
        action = batch.action.expand(members, *batch.action.shape).clone().requires_grad_()
        obs = agent.policy.features(batch.obs).expand(members, *batch.obs.shape)
        assert agent.policy.module.critic is not None
        q = agent.policy.module.critic(torch.cat((obs, action), -1), twice=True)[..., 0]
        (slope,) = torch.autograd.grad(q.sum(), action, create_graph=True)
        unit = slope / (slope.norm(dim=-1, keepdim=True) + 1e-10)
        alike = torch.einsum("ind,jnd->nij", unit, unit)
        apart = alike.sum((1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(-1)
        return self.weight / (members - 1) * batch.mean(apart)
