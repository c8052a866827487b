"""Towards Robust Offline Reinforcement Learning under Diverse Data Corruption (Yang et al., 2024),
arXiv:2310.12955: RIQL.

Changes IQL, which clones by weights and so withstands corruption better than most, in three ways. Where dynamics are
corrupted, targets are heavy-tailed: critics err by Huber's loss. The least of the critics is too low there: states are
valued, and actions weighed, by a quantile of several. And observations are standardised.

    loss_V  = mean |tau - 1(u < 0)| u^2,    u = quantile_k(Qlag_k(s, a), alpha) - V(s)
    loss_Q  = sum_k mean h(r + discount V(s') - Q_k(s, a)),    h(x) = x^2 / (2 delta)    if |x| <= delta
                                                                      |x| - delta / 2    otherwise
    loss_pi = -mean min(exp(beta u), 100) log pi(a|s)

Critics that err by squares, two of them, and the quantile 0 are IQL.

Written after the authors' code, the paper's text not being at hand. There delta = 1 / sigma^2 of a setting sigma from
0.1 to 3; quantiles from 0.1 to 0.5 and 3 or 5 critics are chosen by task and corruption; targets are clipped to what
returns of its tasks can be, [-100, 1000]; the policy is deterministic; observations are standardised by those that
follow as well. Data are corrupted by --task.corrupt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from partita.core.errors import UserError
from partita.core.limits import check_share
from partita.core.paper import Claim, Identity, Paper
from partita.core.transitions import Transitions
from partita.estimators.implicit import expectile_loss
from partita.papers.baselines.iql import IQL
from partita.parts.actor import WeightedClone
from partita.parts.critic import FromValue, Notes
from partita.parts.value import Expectile
from partita.policies.agent import Agent

PAPER = Paper(
    key="riql", title="Towards Robust Offline Reinforcement Learning under Diverse Data Corruption",
    arxiv="2310.12955", authors="Yang et al.", year=2024, changes=("value", "critic", "actor"), loop="replay",
)  # fmt: skip


def quantile_value(agent: Agent, batch: Transitions, quantile: float) -> Tensor:
    """The quantile of what K lagging critics say of the batch's actions, (N,), interpolated, without gradients."""
    with torch.no_grad():
        return agent.q(batch.obs, batch.action, lagged=True).quantile(quantile, 0)


def check_quantile(slot: str, quantile: float) -> None:
    """Raise UserError unless it is a share."""
    check_share(f"{slot}.quantile", quantile)


@dataclass(frozen=True)
class QuantileExpectile(Expectile):
    """An upper expectile of the values of logged actions, these a quantile of the critics (Yang et al., 2024).

        loss = mean |tau - 1(u < 0)| u^2,    u = quantile_k(Qlag_k(s, a), alpha) - V(s)

    alpha is `quantile`: 0 the least of the critics, as in IQL, 0.5 their median.
    """

    quantile: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_quantile("value", self.quantile)

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        u = quantile_value(agent, batch, self.quantile) - agent.v(batch.obs)
        return batch.mean(expectile_loss(u, self.tau)), {"advantage": u.detach().mean()}


@dataclass(frozen=True)
class HuberQ(FromValue):
    """A target from the state value alone, from which to be far costs no more than in proportion (Yang et al., 2024).

        loss = sum_k mean h(r + discount V(s') - Q_k(s, a)),    h(x) = x^2 / (2 delta)    if |x| <= delta
                                                                      |x| - delta / 2    otherwise

    No error pulls harder than with slope 1. delta None: squares, as in IQL.
    """

    members: int = 5
    delta: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta is not None and not 0 < self.delta < math.inf:
            raise UserError(f"critic.delta: expected a number above 0, or None, got {self.delta}")

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        if self.delta is None:
            return super().__call__(agent, batch)
        with torch.no_grad():
            target = self.target(agent, batch)
        q = agent.q(batch.obs, batch.action)
        losses = huber_loss(q, target.expand_as(q), reduction="none", delta=self.delta) / self.delta
        return batch.mean(losses).sum(), {"q": q.detach().mean(), "error": (q - target).detach().abs().mean(0)}


@dataclass(frozen=True)
class QuantileClone(WeightedClone):
    """The logged actions, the better ones more, by a quantile of the critics (Yang et al., 2024).

        loss = -mean w log pi(a|s),    w = min(exp(beta * (quantile_k(Qlag_k(s, a), alpha) - V(s))), clip)

    alpha is `quantile`, the same as the value's in the paper.
    """

    quantile: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_quantile("actor", self.quantile)

    def weight(self, agent: Agent, batch: Transitions) -> Tensor:
        gain = quantile_value(agent, batch, self.quantile) - agent.v(batch.obs).detach()
        return (self.beta * gain).exp().clamp(max=self.clip)


RECIPES = {"riql": IQL.but(value=QuantileExpectile(), critic=HuberQ(), actor=QuantileClone(), normalise=True)}


def displacement(seed: int, delta: float = 1.0, count: int = 200) -> float:
    """How far the least of the critics' loss is from delta (above - below) / rest.

    Targets are 0 but for some, a quarter on average, 1e2 to 1e8 away, above or below at random.
    """
    g = torch.Generator().manual_seed(seed)
    draws = torch.rand(3, count, generator=g, dtype=torch.float64)
    far = torch.where(draws[0] < 0.25, 10 ** (2 + 6 * draws[1]), 0.0) * torch.where(draws[2] < 0.8, 1.0, -1.0)
    none = torch.zeros(count, 1, dtype=torch.float64)
    batch = Transitions(none, none, far, none, none[:, 0])
    low, high = -10 * delta, 10 * delta
    for _ in range(60):
        q = torch.full((1, count), (low + high) / 2, dtype=torch.float64, requires_grad=True)
        agent: Any = SimpleNamespace(q=lambda obs, action, q=q: q, v=lambda obs: none[:, 0])
        slope = torch.autograd.grad(HuberQ(members=1, delta=delta)(agent, batch)[0], q)[0].sum()
        low, high = ((low + high) / 2, high) if slope < 0 else (low, (low + high) / 2)
    return low - delta * float(far.sign().sum() / (far == 0).sum())


def pessimism(seed: int, members: int = 5, quantile: float = 0.25, draws: int = 200_000) -> float:
    """By how many of their deviations the quantile of critics with normal errors is above their mean, in the mean."""
    g = torch.Generator().manual_seed(seed)
    said = torch.randn(members, draws, generator=g, dtype=torch.float64)
    agent: Any = SimpleNamespace(q=lambda obs, action, lagged: said)
    nothing = torch.zeros(draws, 1, dtype=torch.float64)
    batch = Transitions(nothing, nothing, nothing[:, 0], nothing, nothing[:, 0])
    return float(quantile_value(agent, batch, quantile).mean())


_DATA: dict[str, Any] = {
    "task.env": "pendulum", "task.behaviour": "replay", "task.size": 10_000, "policy.hidden": (64, 64),
    "discount": 0.95, "batch_size": 128, "steps": 2, "updates": 1000, "lr": 1e-3, "eval_size": 128,
}  # fmt: skip
_BETAS = {"actor.beta": (1.0, 3.0, 10.0)}
_CLAIM: dict[str, Any] = {"treatment": "riql", "task": "offline", "metric": "return"}
_IQL: dict[str, Any] = {**_CLAIM, "control": "iql", "search": _BETAS}
_DIAL = ("corruption", (("none", {"task.corrupt": "none"}), ("dynamics", {"task.corrupt": "dynamics"})))

CLAIMS = (
    Claim(
        statement="keeps its return where dynamics are corrupted and IQL drops",
        settings=_DATA, dial=_DIAL, **_IQL,
        analysis="-881 against -1242 on all eight seeds; but without corruption it is ahead as well, -819 against "
        "-1075: that much is standardised observations, as the next statement shows. Data of a learner's whole "
        "training, from random to medium; all seeds share them.",
    ),
    Claim(
        statement="also where IQL standardises observations as well",
        settings=_DATA | {"normalise": True}, dial=_DIAL, **_IQL,
        analysis="-881 against -1179 on all eight seeds where dynamics are corrupted, -819 and -808 where nothing is.",
    ),
    Claim(
        statement="and where observations are corrupted",
        settings=_DATA | {"task.corrupt": "obs"}, **_IQL,
        analysis="-1036 against -1332 on all eight seeds. IQL reads observations as they are here, as in the first "
        "statement.",
    ),
    Claim(
        statement="and where actions are corrupted",
        settings=_DATA | {"task.corrupt": "action"}, **_IQL,
        analysis="-750 against -925, ahead on all eight seeds, by 470 on two of them and by 50 to 110 on the others.",
    ),
    Claim(
        statement="and where rewards are corrupted",
        settings=_DATA | {"task.corrupt": "reward"}, **_IQL,
        analysis="-765 against -1123 on all eight seeds. IQL reads observations as they are here, as in the first "
        "statement.",
    ),
    Claim(
        statement="more than EDAC where everything is corrupted",
        control="edac", settings=_DATA | {"task.corrupt": "obs,action,reward,dynamics"}, search_treatment=_BETAS,
        search_control={"lr": (3e-4, 1e-3, 3e-3)}, **_CLAIM,
        analysis="-1052 against -1107: ahead on six seeds of eight. With observations, actions, rewards and "
        "dynamics all corrupted neither learns much; uniform actions earn about -1250.",
    ),
    Identity(
        statement="however far some targets lie, critics miss the others by delta times their surplus on one side",
        measure=displacement, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="the 0.25-quantile of five critics with normal errors is 0.495 deviations pessimistic",
        measure=pessimism, expected=-0.49502, tolerance=0.005, seeds=8,
    ),
)  # fmt: skip
