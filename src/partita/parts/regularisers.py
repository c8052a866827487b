"""The slot `regularisers`: what else is in the loss?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.part import Part
from partita.estimators.ratios import KLEstimator, kl_estimate


class Regulariser(Part):
    """A further loss of each step, (B, T), aggregated like the objective, or a scalar for the whole minibatch."""

    slot: ClassVar[str] = "regularisers"
    loop: ClassVar[str] = "on_policy"

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class KL(Regulariser):
    """Divergence from the reference policy, estimated at the sampled steps (Schulman, 2020).

        loss_t = weight * k(log pi(a_t|s_t), log ref(a_t|s_t)),   k1, k2 or k3

    GRPO (arXiv:2402.03300, eq. 4) uses k3 with weight 0.04.
    """

    needs = ("ref_logp",)
    weight: float = 0.04
    estimator: KLEstimator = "k3"

    def __post_init__(self) -> None:
        if self.estimator not in ("k1", "k2", "k3"):
            raise UserError(f"regularisers.kl.estimator: expected k1, k2 or k3, got {self.estimator!r}")

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        return self.weight * kl_estimate(out.logp, batch.need("ref_logp"), self.estimator)


@dataclass(frozen=True)
class Entropy(Regulariser):
    """An entropy bonus (Williams and Peng, 1991).

        loss_t = -weight * H(pi(.|s_t))

    H in nats.
    """

    needs = ("logp_entropy",)
    weight: float = 0.01

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        return -self.weight * out.need("entropy")


@dataclass(frozen=True)
class ValueLoss(Regulariser):
    """Squared error of the critic, optionally clipped around its old value (PPO's code; Engstrom et al., 2020).

        loss_t = weight / 2 * max((V - G)^2, (V_old + clip(V - V_old, -clip, clip) - G)^2)

    G_t are the returns that credit gives (by default those implied by the advantages, A_t + V_old(s_t)). clip None: the
    plain squared error. Where a rollout fills `value_weight`, the loss of each step is multiplied by it.
    """

    needs = ("value",)
    weight: float = 0.5
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"regularisers.value_loss.clip: expected a positive number, or None, got {self.clip}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if "value" in recipe.credit.needs:
            return None
        return (
            f"regularisers value_loss learns what credit adds to the critic's value, and credit "
            f"{recipe.credit.part_name()} has no critic; use --credit gae, or --credit monte_carlo --credit.critic"
        )

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        value, target = out.need("value"), batch.need("returns")
        error = (value - target).square()
        if self.clip is not None:
            old = batch.need("value")
            error = torch.maximum(error, (old + (value - old).clamp(-self.clip, self.clip) - target).square())
        if batch.value_weight is not None:
            error = error * batch.value_weight
        return self.weight / 2 * error
