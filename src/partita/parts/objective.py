"""The slot `objective`: log-probabilities and advantages to a loss per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.part import Part
from partita.estimators.masked import masked_mean
from partita.estimators.ratios import log_ratio, sequence_log_ratio


class Objective(Part):
    """The loss of each step, (B, T), to be minimised; aggregation and focus come after it.

    `metrics` may report what a practitioner watches of it, as scalars; called without gradients.
    """

    slot: ClassVar[str] = "objective"
    loop: ClassVar[str] = "on_policy"

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        raise NotImplementedError

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Reinforce(Objective):
    """The score-function estimator (Williams, 1992).

        loss_t = -A_t * log pi(a_t | s_t)

    Its mean gradient is minus that of the expected return where the batch was sampled by the policy itself.
    """

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        return -batch.need("advantage") * out.logp


@dataclass(frozen=True)
class ClippedSurrogate(Objective):
    """PPO's clipped surrogate (Schulman et al., 2017, arXiv:1707.06347, eq. 7).

        loss_t = -min(w_t A_t, clip(w_t, 1 - clip_low, 1 + clip_high) A_t),   w_t = pi(a_t|s_t) / mu(a_t|s_t)

    clip_high above clip_low is DAPO's clip-higher (arXiv:2503.14476, eq. 10). dual_clip c > 1 bounds the loss of
    negative advantages by -c A_t (Ye et al., 2020, arXiv:1912.09729). log_ratio_clamp bounds |log w| before
    the exponential (20 in verl and OpenRLHF; none in TRL).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    log_ratio_clamp: float | None = None

    def __post_init__(self) -> None:
        check_clip("objective.clip_low", self.clip_low, 1.0)
        check_clip("objective.clip_high", self.clip_high)
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UserError(f"objective.dual_clip: expected a number above 1, or None, got {self.dual_clip}")
        if self.log_ratio_clamp is not None:
            check_clip("objective.log_ratio_clamp", self.log_ratio_clamp)

    def ratio(self, out: Outputs, batch: Batch) -> Tensor:
        """w_t, (B, T)."""
        return log_ratio(out.logp, batch.need("logp"), self.log_ratio_clamp).exp()

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        advantage, ratio = batch.need("advantage"), self.ratio(out, batch)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        if self.dual_clip is not None:
            loss = torch.where(advantage < 0, torch.minimum(loss, -self.dual_clip * advantage), loss)
        return loss

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        ratio, advantage = self.ratio(out, batch), batch.need("advantage")
        low = (ratio < 1 - self.clip_low) & (advantage < 0)
        high = (ratio > 1 + self.clip_high) & (advantage > 0)
        return {"clip_fraction": masked_mean((low | high).to(ratio.dtype), batch.mask)}


@dataclass(frozen=True)
class SequenceRatio(ClippedSurrogate):
    """The clipped surrogate with one length-normalised ratio a sequence (GSPO, Zheng et al., 2025, arXiv:2507.18071).

        s_i = exp((1 / |y_i|) sum_t log w_it),   loss_it = -min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

    Equation 5 and 7; clipping ranges of 3e-4 and 4e-4 as in its section 5.1. Per-step advantages are allowed, as
    in its token variant (eq. 13), with the gradient of s_i.
    """

    unit = "trajectory"
    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def ratio(self, out: Outputs, batch: Batch) -> Tensor:
        ratios = log_ratio(out.logp, batch.need("logp"), self.log_ratio_clamp)
        return sequence_log_ratio(ratios, batch.mask).exp().expand_as(ratios)


@dataclass(frozen=True)
class ClippedWeight(Objective):
    """REINFORCE with a clipped importance weight that carries no gradient (CISPO, MiniMax, 2025, arXiv:2506.13585).

        loss_t = -sg(clip(w_t, lower, upper)) * A_t * log pi(a_t | s_t)       (eq. 4 and 5)

    lower and upper are bounds on the weight itself. The paper writes both and sets the lower so that it never acts;
    TRL names the bound itself (`epsilon_high`), verl adds one to it and clips below as well.
    """

    lower: float = 0.0
    upper: float = 5.0
    log_ratio_clamp: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper:
            raise UserError(f"objective.upper: expected lower < upper, got {self.lower} and {self.upper}")
        if self.log_ratio_clamp is not None:
            check_clip("objective.log_ratio_clamp", self.log_ratio_clamp)

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        with torch.no_grad():
            weight = log_ratio(out.logp, batch.need("logp"), self.log_ratio_clamp).exp().clamp(self.lower, self.upper)
        return -weight * batch.need("advantage") * out.logp

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        ratio = log_ratio(out.logp, batch.need("logp"), self.log_ratio_clamp).exp()
        outside = (ratio < self.lower) | (ratio > self.upper)
        return {"clip_fraction": masked_mean(outside.to(ratio.dtype), batch.mask)}


def check_clip(name: str, value: float, most: float = float("inf")) -> None:
    """Refuse a clipping range that is not positive, or above `most`."""
    if not 0 < value <= most:
        raise UserError(f"{name}: expected a number above 0{f' and at most {most}' if most < 1e9 else ''}, got {value}")
