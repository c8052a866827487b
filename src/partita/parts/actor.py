"""The slot `actor`: how does the policy follow what is known of values?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.limits import check_count, check_least
from partita.core.part import Domain, Part
from partita.core.spaces import Box
from partita.core.transitions import Transitions
from partita.parts.critic import Notes, pessimistic
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward


class Actor(Part):
    """The loss of the policy on a batch of transitions.

    heads: kinds of policy (`policies/heads`) that the part can teach, those that it prefers first. delay: updates of
    the critics for each of the policy.
    """

    slot: ClassVar[str] = "actor"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    teaches: ClassVar[type[Any]] = FeedForward
    heads: ClassVar[tuple[str, ...]] = ("squashed", "categorical")
    lags: ClassVar[tuple[str, ...]] = ()
    delay: int = 1

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        """The loss, scalar, and what to watch: "entropy", the policy's mean entropy, where it has one."""
        raise NotImplementedError


def check_delay(delay: int) -> None:
    """Raise UserError unless the policy is taught at some updates."""
    check_count("actor.delay", delay)


@dataclass(frozen=True)
class GreedyActor(Actor):
    """No network of its own.

        pi(s) = argmax_a mean_k Q_k(s, a)

    the action that the critics hold best.
    """

    heads: ClassVar[tuple[str, ...]] = ("greedy",)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if isinstance(task.action_space, Box):
            return f"actor greedy_actor needs discrete actions; those of task {task.part_name()} are real"
        return None


@dataclass(frozen=True)
class SoftActor(Actor):
    """Towards the Boltzmann policy of the critics (Haarnoja et al., 2018, arXiv:1812.05905, eq. 7 and 9).

        loss = mean alpha log pi(a|s) - min_k Q_k(s, a),    a = the policy's draw, through which gradients flow

    For discrete actions the mean over a is exact, and Q is a constant.
    """

    delay: int = 1

    def __post_init__(self) -> None:
        check_delay(self.delay)

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        if agent.discrete:
            with torch.no_grad():
                q = pessimistic(agent.q(batch.obs))
            table = agent.table(batch.obs)
            chance = table.exp()
            loss = (chance * (agent.alpha * table - q)).sum(-1)
            return batch.mean(loss), {"entropy": -(chance * table).detach().sum(-1).mean()}
        action, logp = agent.draw(batch.obs)
        assert logp is not None
        q = pessimistic(agent.q(batch.obs, action))
        return batch.mean(agent.alpha * logp - q), {"entropy": -logp.detach().mean()}


@dataclass(frozen=True)
class DeterministicActor(Actor):
    """Up the first critic (Silver et al., 2014; Fujimoto et al., 2018, arXiv:1802.09477).

        loss = -lambda mean Q_1(s, pi(s)),    lambda = scale / mean |Q_1(s, pi(s))|  or 1 without a scale

    scale: alpha of TD3+BC (Fujimoto and Gu, 2021, arXiv:2106.06860, eq. 5), which makes the loss as large as a
    regulariser beside it whatever the rewards are.
    """

    heads: ClassVar[tuple[str, ...]] = ("deterministic",)
    delay: int = 2
    scale: float | None = None

    def __post_init__(self) -> None:
        check_delay(self.delay)
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise UserError(f"actor.scale: expected a number above 0, got {self.scale}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Box):
            return f"actor deterministic_actor needs real-valued actions, and task {task.part_name()} has none"
        return None

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        q = agent.q(batch.obs, agent.mode(batch.obs), first=1)[0]
        loss = -batch.mean(q)
        if self.scale is not None:
            loss = loss * (self.scale / q.detach().abs().mean())
        return loss, {}


@dataclass(frozen=True)
class WeightedClone(Actor):
    """The logged actions, the better ones more.

        loss = -mean w log pi(a|s),    w = min(exp(beta * (min_k Qlag_k(s, a) - V(s))), clip)

    (Kostrikov et al., 2021, arXiv:2110.06169, eq. 7).
    """

    heads: ClassVar[tuple[str, ...]] = ("gaussian", "categorical", "squashed")
    lags: ClassVar[tuple[str, ...]] = ("critic",)
    beta: float = 3.0
    clip: float = 100.0
    delay: int = 1

    def __post_init__(self) -> None:
        check_delay(self.delay)
        for name in ("beta", "clip"):
            check_least(f"actor.{name}", getattr(self, name))

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if recipe.value is None:
            return "actor weighted_clone needs a state value; choose a part for --value"
        return None

    def weight(self, agent: Agent, batch: Transitions) -> Tensor:
        """The weight of every logged action, (N,), without gradients."""
        with torch.no_grad():
            gain = pessimistic(agent.q(batch.obs, batch.action, lagged=True)) - agent.v(batch.obs)
            return (self.beta * gain).exp().clamp(max=self.clip)

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        weight = self.weight(agent, batch)
        logp = agent.logp(batch.obs, batch.action)
        return -batch.mean(weight * logp), {"weight": weight.mean(), "entropy": -logp.detach().mean()}


@dataclass(frozen=True)
class Clone(Actor):
    """The logged actions, all alike: behaviour cloning.

        loss = -mean log pi(a|s)
               mean |pi(s) - a|^2      for a deterministic policy

    the mean being over entries of an action too.
    """

    heads: ClassVar[tuple[str, ...]] = ("gaussian", "categorical", "deterministic", "squashed")
    delay: int = 1

    def __post_init__(self) -> None:
        check_delay(self.delay)

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        if agent.policy.settings.head == "deterministic":
            return batch.mean((agent.mode(batch.obs) - batch.action).square().mean(-1)), {}
        logp = agent.logp(batch.obs, batch.action)
        return -batch.mean(logp), {"entropy": -logp.detach().mean()}
