"""Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs (Le Roux et al., 2025),
arXiv:2503.14286.

REINFORCE on trajectories of an older policy mu, whose importance ratio is used for bad trajectories only, and there
never above one: what has become unlikely is left alone, what is good is imitated at full weight.

    grad J = sum_{A >= 0} mu(y) A(y) grad log pi(y) + sum_{A < 0} mu(y) [pi(y) / mu(y)]_0^1 A(y) grad log pi(y)

This is the general form (eq. 7 and 8) at its canonical limits. Rewards are +1 and -1, and a constant baseline c
decides how much bad trajectories weigh (`credit`): with p the share of good ones, their effective share is p (1 - c)
/ (1 + (1 - 2 p) c). Losses are divided by the length of each trajectory, as in the paper's experiments. Recipes
beside it are other rows of the paper's table 1: no ratio at all (`topr_naive`), good trajectories alone
(`topr_positives`), and one truncated ratio for both (`topr_truncated`). Equations are numbered as in notes on the
paper, which itself was not at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.paper import Claim, Paper
from partita.estimators.masked import masked_mean
from partita.estimators.ratios import log_ratio
from partita.loops.on_policy import OnPolicy
from partita.parts.aggregate import SequenceMean
from partita.parts.credit import Credit, spread, trajectory_return
from partita.parts.objective import Objective
from partita.parts.rollout import Sample

PAPER = Paper(
    key="topr",
    title="Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
    arxiv="2503.14286", authors="Le Roux et al.", year=2025, changes=("credit", "objective"),
)  # fmt: skip


@dataclass(frozen=True)
class SignedBaseline(Credit):
    """Right and wrong as +1 and -1, less a constant (Le Roux et al., 2025, arXiv:2503.14286).

        A_i = (2 R_i - 1) - baseline

    given to every step of trajectory i. R is a score from 0 to 1. baseline: c, from -1 (wrong trajectories count
    nothing) to 1 (right ones do).
    """

    baseline: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.baseline <= 1:
            raise UserError(f"credit.baseline: expected a number from -1 to 1, got {self.baseline}")

    def __call__(self, batch: Batch) -> Tensor:
        return spread(2 * trajectory_return(batch) - 1 - self.baseline, batch)


@dataclass(frozen=True)
class Tapered(Objective):
    """REINFORCE with a trajectory's importance ratio, truncated by the sign of its advantage (TOPR).

        loss_t = -sg(clip(pi(y) / mu(y), a, b)) * A_t * log pi(a_t | s_t)
        (a, b) = (positive_low, positive_high) where A_t >= 0, else (negative_low, negative_high)

    Le Roux et al. (2025), arXiv:2503.14286, eq. 7 and 8. pi(y) / mu(y) is the product of the ratios of all steps on
    which the policy acted. All limits at 1: naive REINFORCE; negative_high = 0: good trajectories alone; limits 0 and
    1 for both signs: truncated importance sampling. The paper shows that any negative_low above 0 ends in degeneration.
    """

    unit = "trajectory"
    positive_low: float = 1.0
    positive_high: float = 1.0
    negative_low: float = 0.0
    negative_high: float = 1.0

    def __post_init__(self) -> None:
        for sign in ("positive", "negative"):
            low, high = getattr(self, f"{sign}_low"), getattr(self, f"{sign}_high")
            if not 0 <= low <= high < math.inf:
                raise UserError(f"objective.{sign}_high: expected 0 <= {sign}_low <= {sign}_high, got {low} and {high}")

    def weight(self, out: Outputs, batch: Batch) -> Tensor:
        """The truncated ratio of each trajectory at each of its steps, (B, T), without gradient."""
        with torch.no_grad():
            ratios = log_ratio(out.logp, batch.need("logp")) * batch.mask
            ratio = ratios.sum(1, keepdim=True).exp()
            positive = ratio.clamp(self.positive_low, self.positive_high)
            negative = ratio.clamp(self.negative_low, self.negative_high)
            return torch.where(batch.need("advantage") >= 0, positive, negative)

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        return -self.weight(out, batch) * batch.need("advantage") * out.logp

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        bad = (batch.need("advantage") < 0) & batch.mask
        return {"negative_weight": masked_mean(self.weight(out, batch), bad)}


def effective_positives(share: float, baseline: float) -> float:
    """The share of good trajectories in the gradient's weight, given theirs in the data and the baseline c.

        p~ = p (1 - c) / (1 + (1 - 2 p) c)

    Le Roux et al. (2025), arXiv:2503.14286, section 4.3, which finds 0.1 to 0.2 best; at c = -1 it is 1.
    """
    if not (0 <= share <= 1 and -1 <= baseline <= 1):
        raise ValueError(f"share, baseline: expected numbers from 0 to 1 and from -1 to 1, got {share} and {baseline}")
    total = 1 + (1 - 2 * share) * baseline
    if total == 0:
        raise ValueError(f"baseline: {baseline} leaves no weight where the share of good trajectories is {share}")
    return share * (1 - baseline) / total


TOPR = OnPolicy(
    rollout=Sample(), credit=SignedBaseline(), objective=Tapered(), aggregate=SequenceMean(), group_size=8,
)  # fmt: skip

RECIPES = {
    "topr": TOPR,
    "topr_naive": TOPR.but(objective=Tapered(negative_low=1.0)),
    "topr_positives": TOPR.but(objective=Tapered(negative_high=0.0)),
    "topr_truncated": TOPR.but(objective=Tapered(positive_low=0.0)),
}

_FIRST = {"behaviour": {"part": "stale", "refresh": 1_000_000}}  # the policy before training samples everything
_SETTINGS = {"policy.model": "tiny-0.3m", "steps": 60, "batch_size": 16, "eval_size": 300}

CLAIMS = (
    Claim(
        statement="learns from trajectories of the first policy alone, where naive off-policy REINFORCE diverges",
        treatment="topr", control="topr_naive", task="countdown", metric="success",
        dial=("who samples", (("the policy as it is", {"behaviour": "current"}), ("the first policy", _FIRST))),
        settings={**_SETTINGS, "task.level": 1}, search={"lr": (1e-4, 3e-4, 1e-3)},
        analysis="From the first policy's trajectories alone TOPR learns as much as from its own; without the taper "
        "every seed ends at 0, pushed away from bad trajectories that had long become unlikely. On-policy the ratio is "
        "one before the first update and the arms differ little.",
    ),
    Claim(
        statement="bad trajectories of the first policy teach more than its good ones alone",
        treatment="topr", control="topr_positives", task="arithmetic", metric="success",
        settings={**_SETTINGS, **_FIRST, "task.level": 3},
        search_treatment={"lr": (3e-4, 1e-3), "credit.baseline": (0.0, -0.5)},
        search_control={"lr": (1e-4, 3e-4, 1e-3, 3e-3)},
        analysis="With the learning rate tuned for each, good trajectories alone learn as much: 0.946 against "
        "0.950.",
    ),
)  # fmt: skip
