"""The slot `focus`: which steps count, and how much?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.part import Part
from partita.core.policy import Policy


class Focus(Part):
    """Weights of steps, (B, T), multiplied into the objective (not into the regularisers)."""

    slot: ClassVar[str] = "focus"

    def look(self, policy: Policy, batch: Batch, learner: Any) -> Batch:
        """The batch with what the weights depend on and only the policy, or its optimiser, can tell.

        Called before the weights are asked for; `learner` is the loop's, with `rate`, `betas` and `eps` of the step.
        """
        return batch

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What to watch of the weights that `batch` has been given."""
        return {}


@dataclass(frozen=True)
class AllSteps(Focus):
    """Every step on which the policy acted, with weight one."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask.to(batch.need("advantage").dtype)


@dataclass(frozen=True)
class TruncatedImportance(Focus):
    """Steps weighted by how much likelier the policy makes them than what they were drawn from, up to a cap.

        weight_t = min(pi_old(a_t | s_t) / q_t(a_t | s_t), cap)

    Truncated importance sampling per step (Ionides, 2008, Journal of Computational and Graphical Statistics 17): log
    pi_old is `logp`, of the policy itself, and log q is `sampler_logp`, of another temperature along the response for
    example. Where `sampler_logp` is empty both are the same and every step weighs one. cap: the larger, the smaller the
    bias and the larger the variance; inf leaves the ratio as it is.
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise UserError(f"focus.cap: expected a number above 0 (inf: no cap), got {self.cap}")

    def __call__(self, batch: Batch) -> Tensor:
        weight = batch.mask.to(batch.need("advantage").dtype)
        if batch.sampler_logp is None:
            return weight
        ratio = torch.exp(batch.need("logp") - batch.sampler_logp).clamp(max=self.cap)
        return weight * torch.where(batch.mask, ratio, 0)
