"""BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive Clipping
(Xi et al., 2025), arXiv:2510.18927.

Changes GRPO in the slot `objective`: the bounds of the clip are found anew for every update, so that steps of positive
advantage make up at least a share rho_0 of the surrogate. The upper bound rises first, to let unlikely good steps in;
then the lower one, to leave unlikely bad steps out.

    loss_t = -min(w_t A_t, clip(w_t, c_low, c_high) A_t)                              (line 20 of algorithm 1)
    share(c_low, c_high) = |sum_{A > 0} min(w A, clip(w) A)| / sum_all |min(w A, clip(w) A)| >= rho_0        (eq. 8)

Losses are averaged over tokens (`aggregate`), since both equations sum over them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.paper import Claim, Paper
from partita.estimators.masked import masked_mean
from partita.estimators.ratios import log_ratio
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import TokenMean
from partita.parts.objective import Objective

PAPER = Paper(
    key="bapo",
    title="BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive "
    "Clipping",
    arxiv="2510.18927", authors="Xi et al.", year=2025, changes=("objective", "aggregate"),
)  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """What a search found: the bounds on the importance ratio, and the share of positive steps under them."""

    low: float
    high: float
    share: float


@dataclass(frozen=True)
class BalancedClip(Objective):
    """A clipped surrogate whose bounds balance good and bad steps (BAPO, Xi et al., 2025, arXiv:2510.18927).

        c_low, c_high = low_start, high_start
        while share < target and c_low + low_step <= low_end:
            if c_high + high_step <= high_end: c_high += high_step    else: c_low += low_step
        loss_t = -min(w_t A_t, clip(w_t, c_low, c_high) A_t)

    Algorithm 1. share is that of eq. 8 over all steps of the minibatch, each counted by its weight of the slot `focus`;
    its terms are taken without their signs, which would cancel below the line. target: rho_0. low_start, low_end,
    high_start, high_end: a-, b-, a+, b+, the range of each bound (on the ratio itself, not its distance from 1).
    low_step, high_step: delta_2, delta_1. Equation 8 writes sums over actions with their probability under the sampler;
    over samples that probability is already in their frequency. A surrogate without any signal needs no search. As the
    equation stands, raising c_low makes the share smaller (a clipped bad step then counts c_low |A|), so that c_low,
    once it moves, moves to its limit. The official code raises c_low before c_high and adds a dual clip of 3; here the
    paper is followed.
    """

    whole = True
    target: float = 0.4
    low_start: float = 0.6
    low_end: float = 0.9
    high_start: float = 1.2
    high_end: float = 3.0
    low_step: float = 0.02
    high_step: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.target < 1:
            raise UserError(f"objective.target: expected a share from 0 to below 1, got {self.target}")
        if not 0 <= self.low_start <= self.low_end <= 1:
            raise UserError(
                f"objective.low_end: expected 0 <= low_start <= low_end <= 1, got {self.low_start} and {self.low_end}"
            )
        if not 1 <= self.high_start <= self.high_end:
            raise UserError(
                f"objective.high_end: expected 1 <= high_start <= high_end, got {self.high_start} and {self.high_end}"
            )
        for name in ("low_step", "high_step"):
            check_above(f"objective.{name}", getattr(self, name))

    @torch.no_grad()
    def bounds(self, out: Outputs, batch: Batch) -> Bounds:
        """The bounds for this minibatch, and the share of positive steps that they give."""
        counts = batch.mask if batch.weight is None else batch.weight * batch.mask
        ratio = log_ratio(out.logp, batch.need("logp")).exp()
        signal = batch.need("advantage") * counts
        good, bad = signal.clamp(min=0), -signal.clamp(max=0)

        def share(low: float, high: float) -> float:
            plus, minus = (good * ratio.clamp(max=high)).sum(), (bad * ratio.clamp(min=low)).sum()
            total = plus + minus
            return float(plus / total) if bool(total > 0) else 1.0

        ups = downs = 0
        low, high = self.low_start, self.high_start
        found = share(low, high)
        while found < self.target and self.low_start + (downs + 1) * self.low_step <= self.low_end + 1e-9:
            if self.high_start + (ups + 1) * self.high_step <= self.high_end + 1e-9:
                ups += 1
            else:
                downs += 1
            low, high = self.low_start + downs * self.low_step, self.high_start + ups * self.high_step
            found = share(low, high)
        return Bounds(low, high, found)

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        found, advantage = self.bounds(out, batch), batch.need("advantage")
        ratio = log_ratio(out.logp, batch.need("logp")).exp()
        return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(found.low, found.high))

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        found, advantage = self.bounds(out, batch), batch.need("advantage")
        ratio = log_ratio(out.logp, batch.need("logp")).exp()
        clipped = ((ratio < found.low) & (advantage < 0)) | ((ratio > found.high) & (advantage > 0))
        told = {"clip_low": found.low, "clip_high": found.high, "positive_share": found.share}
        return {n: ratio.new_tensor(v) for n, v in told.items()} | {
            "clip_fraction": masked_mean(clipped.to(ratio.dtype), batch.mask)
        }


BAPO = GRPO.but(objective=BalancedClip(), aggregate=TokenMean())

RECIPES = {"bapo": BAPO}

_STALE = ("updates between two renewals of the sampler", (
    ("1", {"behaviour": {"part": "stale", "refresh": 1}}),
    ("16", {"behaviour": {"part": "stale", "refresh": 16}}),
))  # fmt: skip
_SETTINGS = {
    "policy.model": "tiny-0.3m", "task.level": 2, "aggregate": "token_mean", "steps": 64, "batch_size": 16,
    "eval_size": 300,
}  # fmt: skip
_RATES: dict[str, tuple[float, ...]] = {"lr": (3e-4, 1e-3)}
_TARGETS, _CLIPS = {"objective.target": (0.4, 0.5)}, {"objective.clip_high": (0.2, 0.28)}

CLAIMS = (
    Claim(
        statement="higher success than a fixed clip when trajectories are stale",
        treatment="bapo", control="grpo", task="countdown", metric="success",
        dial=_STALE, settings=_SETTINGS, search=_RATES, search_treatment=_TARGETS, search_control=_CLIPS,
        analysis="Without staleness the two arms are the same run, since no ratio has moved when the clip is "
        "adapted. With trajectories sixteen updates old neither success nor its spread differs from a "
        "tuned fixed clip.",
    ),
    Claim(
        statement="higher entropy late in training than with a fixed clip when trajectories are stale",
        treatment="bapo", control="grpo", task="countdown", metric="entropy",
        settings={**_SETTINGS, **_STALE[1][-1][1]}, search=_RATES, search_treatment=_TARGETS, search_control=_CLIPS,
        analysis="The other way round, on every seed: lower by 0.013 nats. A wider upper bound also lets the likely "
        "tokens of good trajectories grow further, and no arm's entropy collapses here in 64 steps.",
    ),
)  # fmt: skip
