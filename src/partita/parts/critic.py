"""The slot `critic`: what is an action worth, and how is that learnt?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.limits import check_least
from partita.core.part import Domain, Part
from partita.core.spaces import Box, Discrete
from partita.core.transitions import Transitions
from partita.policies.agent import Agent

Notes = dict[str, Tensor]


class Critic(Part):
    """The loss of a stack of critics Q_k, k = 1 .. members, on a batch of transitions.

    members: how many. outputs: numbers that a critic puts out for an action. dueling: see `policies/feed_forward`.
    """

    slot: ClassVar[str] = "critic"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    lags: ClassVar[tuple[str, ...]] = ("critic",)
    outputs: ClassVar[int] = 1
    dueling: bool = False
    members: int = 2

    def target(self, agent: Agent, batch: Transitions) -> Tensor:
        """What the critics are drawn to, (N,) or (K, N); without gradients."""
        raise NotImplementedError

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        """The loss, scalar, and what to watch: "error" (N,), the mean absolute error of the members, among it.

        loss = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2
        """
        with torch.no_grad():
            target = self.target(agent, batch)
        q = agent.q(batch.obs, batch.action)
        error = q - target
        return batch.mean(error.square()).sum(), {"q": q.detach().mean(), "error": error.detach().abs().mean(0)}


def check_members(members: int, least: int = 1) -> None:
    """Raise UserError unless there are enough critics."""
    if members < least:
        raise UserError(f"critic.members: expected {least} or more, got {members}")


def pessimistic(q: Tensor) -> Tensor:
    """min_k Q_k: the least that any of K critics says, (N,) or (N, n)."""
    return q.amin(0) if len(q) > 1 else q[0]


def soft_value(agent: Agent, obs: Tensor) -> Tensor:
    """V(s) = E_a[min_k Q_k(s, a) - alpha log pi(a|s)] of the lagging critics, (N,).

    The expectation is one draw for real-valued actions (Haarnoja et al., 2018, eq. 3) and exact for discrete ones
    (Christodoulou, 2019, arXiv:1910.07207, eq. 10).
    """
    if agent.discrete:
        table = agent.table(obs)
        return (table.exp() * (pessimistic(agent.q(obs, lagged=True)) - agent.alpha * table)).sum(-1)
    action, logp = agent.draw(obs)
    found = pessimistic(agent.q(obs, action, lagged=True))
    return found if logp is None else found - agent.alpha * logp


@dataclass(frozen=True)
class SoftQ(Critic):
    """The soft Bellman target, with the least of the critics.

        y = r + discount * (min_k Qlag_k(s', a') - alpha log pi(a'|s')),    a' ~ pi(s')

    (Haarnoja et al., 2018, arXiv:1812.05905, eq. 5 and 6).
    """

    members: int = 2

    def __post_init__(self) -> None:
        check_members(self.members)

    def target(self, agent: Agent, batch: Transitions) -> Tensor:
        return torch.addcmul(batch.reward, batch.discount, soft_value(agent, batch.next_obs))


@dataclass(frozen=True)
class ClippedDoubleQ(Critic):
    """The target of TD3: the least of the critics at the lagging actor's action, smoothed (Fujimoto et al., 2018).

        y = r + discount * min_k Qlag_k(s', a'),    a' = clip(pi_lag(s') + clip(noise * z, -clip, clip), -1, 1)

    arXiv:1802.09477, eq. 10 and 14. members 1 and noise 0 is DDPG. smoothing and its clip are in units of the scaled
    actions.
    """

    lags: ClassVar[tuple[str, ...]] = ("critic", "actor")
    members: int = 2
    noise: float = 0.2
    clip: float = 0.5

    def __post_init__(self) -> None:
        check_members(self.members)
        for name in ("noise", "clip"):
            check_least(f"critic.{name}", getattr(self, name))

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Box):
            return f"critic clipped_double_q needs real-valued actions; task {task.part_name()} has none; use greedy_q"
        return None

    def target(self, agent: Agent, batch: Transitions) -> Tensor:
        action = agent.mode(batch.next_obs, lagged=True)
        if self.noise:
            z = torch.randn(action.shape, generator=agent.generator, device=agent.generator.device).to(action.device)
            action = (action + (z * self.noise).clamp(-self.clip, self.clip)).clamp(-1, 1)
        found = pessimistic(agent.q(batch.next_obs, action, lagged=True))
        return torch.addcmul(batch.reward, batch.discount, found)


@dataclass(frozen=True)
class GreedyQ(Critic):
    """Deep Q-learning: the value of the best action (Mnih et al., 2015), chosen by the critic that learns if `double`.

        y = r + discount * Qlag(s', argmax_a Q(s', a))        double (van Hasselt et al., 2016, arXiv:1509.06461)
            r + discount * max_a Qlag(s', a)                  otherwise

    Means over members where there are several. loss: squared, or Huber's with threshold 1. dueling: the critic puts out
    a state value and advantages (Wang et al., 2016, arXiv:1511.06581, eq. 9).
    """

    members: int = 1
    double: bool = True
    dueling: bool = False
    loss: Literal["squared", "huber"] = "huber"

    def __post_init__(self) -> None:
        check_members(self.members)
        if self.loss not in get_args(Literal["squared", "huber"]):
            raise UserError(f"critic.loss: expected squared or huber, got {self.loss!r}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Discrete):
            return f"critic greedy_q needs discrete actions; those of task {task.part_name()} are real; use sac or td3"
        return None

    def target(self, agent: Agent, batch: Transitions) -> Tensor:
        later = agent.q(batch.next_obs, lagged=True).mean(0)
        best = (agent.q(batch.next_obs).mean(0) if self.double else later).argmax(-1, keepdim=True)
        return torch.addcmul(batch.reward, batch.discount, later.gather(-1, best)[:, 0])

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        if self.loss == "squared":
            return super().__call__(agent, batch)
        with torch.no_grad():
            target = self.target(agent, batch)
        q = agent.q(batch.obs, batch.action)
        losses = torch.nn.functional.huber_loss(q, target.expand_as(q), reduction="none")
        return batch.mean(losses).sum(), {"q": q.detach().mean(), "error": (q - target).detach().abs().mean(0)}


@dataclass(frozen=True)
class FromValue(Critic):
    """A target from the state value alone.

        y = r + discount * V(s')

    (IQL: Kostrikov et al., 2021, arXiv:2110.06169, eq. 6).
    """

    lags: ClassVar[tuple[str, ...]] = ()
    members: int = 2

    def __post_init__(self) -> None:
        check_members(self.members)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        return None if recipe.value is not None else "critic from_value needs a state value; choose a part for --value"

    def target(self, agent: Agent, batch: Transitions) -> Tensor:
        return torch.addcmul(batch.reward, batch.discount, agent.v(batch.next_obs))
