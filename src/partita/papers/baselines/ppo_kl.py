"""Proximal Policy Optimization Algorithms (Schulman et al., 2017), arXiv:1707.06347: the KL penalty of its section 4.

Where TRPO limits how far an update may go, the divergence from the old policy gets a price, and Adam takes several
epochs of minibatches:

    loss = E[-pi(a|s) / old(a|s) A + beta KL(old(.|s) || pi(.|s))]                     (eq. 8)

The price is adapted after every update, so that the divergence stays near a target. Beside it, a fixed price, which the
paper tries with 0.3, 1, 3 and 10. PPO clips the ratio instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.core.paper import Paper
from partita.core.part import Domain
from partita.core.policy import Policy
from partita.estimators.masked import masked_mean
from partita.papers.baselines.trpo import TRPO
from partita.parts.optimiser import Adam
from partita.parts.regularisers import Regulariser, ValueLoss

PAPER = Paper(
    key="ppo_kl", title="Proximal Policy Optimization Algorithms: the KL penalty", arxiv="1707.06347",
    kind="baseline", authors="Schulman et al.", year=2017, changes=("regularisers", "optimiser"),
)  # fmt: skip

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class StepKL(Regulariser):
    """A price on the divergence from the policy as it was before the update, exact (PPO, arXiv:1707.06347, eq. 8).

        loss_t = beta KL(old(.|s_t) || pi(.|s_t))      forward
        loss_t = beta KL(pi(.|s_t) || old(.|s_t))      reverse

    Fixed here; nats.
    """

    needs: ClassVar[tuple[str, ...]] = ("old",)
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    beta: float = 1.0
    direction: Direction = "forward"

    def __post_init__(self) -> None:
        check_least(f"regularisers.{self.part_name()}.beta", self.beta)
        if self.direction not in get_args(Direction):
            raise UserError(
                f"regularisers.{self.part_name()}.direction: expected forward or reverse, got {self.direction!r}"
            )

    def price(self) -> float:
        """What a nat costs in this update."""
        return self.beta

    def divergence(self, out: Outputs) -> Tensor:
        """From or to the old policy at each step, (B, T)."""
        return out.need(f"{self.direction}_kl")

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        return self.price() * self.divergence(out)


@dataclass(frozen=True)
class AdaptiveKL(StepKL):
    """The same at a price that keeps updates near a target divergence (PPO, arXiv:1707.06347, section 4).

        beta <- beta / 2  if  d < target / 1.5,      beta <- 2 beta  if  d > 1.5 target

    after every update, d the mean divergence that it came to, in nats; beta is where the price begins.
    """

    target: float = 0.01
    _now: dict[str, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("regularisers.adaptive_kl.beta", self.beta)
        if not 0 < self.target < math.inf:
            raise UserError(f"regularisers.adaptive_kl.target: expected a number of nats above 0, got {self.target}")

    def price(self) -> float:
        return self._now.get("beta", self.beta)

    def adapt(self, policy: Policy, batch: Batch, step: int, total: int) -> dict[str, float]:
        with torch.no_grad():
            reached = float(masked_mean(self.divergence(policy.evaluate(batch)), batch.mask))
        paid = self.price()
        if reached < self.target / 1.5:
            self._now["beta"] = paid / 2
        elif reached > self.target * 1.5:
            self._now["beta"] = paid * 2
        return {"step_kl": reached, "beta": paid}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._now.clear()
        self._now.update(state)


PPO_KL = TRPO.but(
    regularisers=(ValueLoss(weight=0.5), AdaptiveKL()), optimiser=Adam(), epochs=4, minibatches=4, whiten="minibatch",
)  # fmt: skip

RECIPES = {"ppo_kl": PPO_KL, "ppo_kl_fixed": PPO_KL.but(regularisers=(ValueLoss(weight=0.5), StepKL(beta=1.0)))}
