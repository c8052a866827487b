"""RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training (Ren et al., 2025),
arXiv:2510.00911.

Changes GRPO in two slots. `credit`: questions are put into bundles, and the advantage of a bundle of answers is what
its score adds to a mixed value-at-risk of the score's distribution, which weighs the worst bundles most and ignores
the best. `objective`: one length-normalised ratio a response, clipped.

    J = (1 + omega) E[R; R below its alpha-quantile] + E[R; R between its alpha- and beta-quantile]
    A = -(1 + omega) (q_alpha - R)^+ + g(R, q_alpha, q_beta),   g(z, a, b) = (z - a)^+ - (z - b)^+ + a - b
    q_s <- q_s + rate * (s - share of bundles with R < q_s),    s = alpha, beta

R is the number of questions of a bundle that are solved; quantiles are tracked over the steps. Written after the
official code (github.com/RTkenny/RiskPO) and detailed notes on the paper; no equation is cited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.paper import Claim, Paper
from partita.estimators import groups
from partita.papers.baselines.grpo import GRPO
from partita.papers.measuring import pass_at, saved
from partita.parts.credit import Credit, Promises, spread, trajectory_return
from partita.parts.objective import SequenceRatio
from partita.tasks.language.arithmetic import Arithmetic

PAPER = Paper(
    key="riskpo", title="RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
    arxiv="2510.00911", authors="Ren et al.", year=2025, changes=("credit", "objective"),
    url="https://github.com/RTkenny/RiskPO",
)  # fmt: skip


@dataclass(frozen=True)
class MixedValueAtRisk(Credit):
    """What a bundle's score adds to a mixed value-at-risk of the scores (RiskPO).

        A_j = -(1 + omega) (q_alpha - R_j)^+ + (R_j - q_alpha)^+ - (R_j - q_beta)^+ + q_alpha - q_beta

    given to every step of every response in bundle j. A bundle is one response to each of `bundle` questions; R_j is
    the sum of their returns. The j-th responses to a bundle's questions go together: they are independent draws, so
    that this is the random assignment without replacement of the paper. Questions are bundled in the order of the
    batch; where their number is no multiple of `bundle`, bundles differ by a question and scores are scaled to
    `bundle` questions. A question with fewer responses than another of its bundle lends them again, and a response in
    several bundles gets the mean.

    q_alpha, q_beta: quantiles of R. The first batch gives their first values; each batch then moves them, after its
    advantages are worked out, by

        q_s <- q_s + rate * (s - mean_j [R_j < q_s])

    alpha, beta: levels; omega: extra weight of the lower tail (omega = 0, alpha = 0: the range from 0 to beta alone).
    baseline: a constant that the expected gradient of whole responses does not depend on. "upper": as the paper has it,
    bundles above q_beta get 0 and all others less; "lower": a bundle at q_alpha gets 0, as in the official script for
    hard mathematics; "mean": the advantages of the batch's bundles average 0 (an option of the official code). Where
    steps are averaged over each response, a constant rewards or punishes length.

    The official scripts also divide by the deviation of a bundle's scores, and give a question more or less of the
    advantage by its own mean or deviation; the paper gives all of them the same.
    """

    promises = Promises(order="neither")  # responses are bundled by their places in the groups
    alpha: float = 0.2
    beta: float = 0.8
    omega: float = 0.5
    bundle: int = 5
    rate: float = 0.1
    baseline: Literal["upper", "lower", "mean"] = "upper"
    _held: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < self.beta <= 1:
            raise UserError(f"credit.beta: expected 0 <= alpha < beta <= 1, got {self.alpha} and {self.beta}")
        if not self.omega >= 0:
            raise UserError(f"credit.omega: expected 0 or more, got {self.omega}")
        if self.bundle < 1:
            raise UserError(f"credit.bundle: expected at least 1 question, got {self.bundle}")
        check_above("credit.rate", self.rate)
        if self.baseline not in ("upper", "lower", "mean"):
            raise UserError(f"credit.baseline: expected upper, lower or mean, got {self.baseline!r}")

    def __call__(self, batch: Batch) -> Tensor:
        score, member = bundled(trajectory_return(batch), batch.need("group"), self.bundle)
        level = score.new_tensor([self.alpha, self.beta])
        if "quantiles" not in self._held:
            self._held["quantiles"] = torch.quantile(score.flatten(), level)
        quantiles = self._held["quantiles"].to(score)
        advantage = self.advantage(score, quantiles)
        below = (score.flatten() < quantiles[:, None]).to(score.dtype).mean(1)
        self._held["quantiles"] = quantiles + self.rate * (level - below)
        return spread((member * advantage.flatten()).sum(1) / member.sum(1), batch)

    def advantage(self, score: Tensor, quantiles: Tensor) -> Tensor:
        """A of scores (any shape) for q_alpha and q_beta, (2,)."""
        low, high = quantiles
        tail = -(1 + self.omega) * (low - score).clamp(min=0)
        middle = (score - low).clamp(min=0) - (score - high).clamp(min=0)
        if self.baseline == "mean":
            return tail + middle - (tail + middle).mean()
        return tail + middle + (low - high if self.baseline == "upper" else 0)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._held)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held.clear()
        self._held.update(state)


def bundled(reward: Tensor, group: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Scores of bundles, (N, G), and which bundles each trajectory is in, (B, N * G) of zeros and ones.

    N: bundles of questions, about `size` each; G: the most responses to one question.
    """
    question, count = groups.group_index(group)
    bundles = max(1, round(count / size))
    place = question * bundles // count
    each = torch.zeros(bundles, dtype=reward.dtype, device=reward.device)
    each.index_add_(
        0, torch.arange(count, device=reward.device) * bundles // count, torch.ones_like(each[:1]).expand(count)
    )
    order = (question[:, None] == question[None, :]).tril(-1).sum(1)
    number = groups.group_size(group, reward.dtype).long()
    slots = torch.arange(int(number.max()), device=reward.device)
    lent = (slots % number[:, None] == order[:, None]).to(reward.dtype)
    score = torch.zeros(bundles, len(slots), dtype=reward.dtype, device=reward.device)
    score.index_add_(0, place, lent * reward[:, None])
    member = torch.nn.functional.one_hot(place, bundles).to(reward.dtype)[:, :, None] * lent[:, None, :]
    return score * (size / each[:, None]), member.flatten(1)


RISKPO = GRPO.but(credit=MixedValueAtRisk(), objective=SequenceRatio(clip_low=0.2, clip_high=0.2))

RECIPES = {"riskpo": RISKPO, "riskpo_centred": RISKPO.but(credit=MixedValueAtRisk(baseline="mean"))}


def tail_pass_at_8(folder: Path) -> float:
    """Share of 150 fresh problems of the hardest level that one of eight samples solves, for the policy of a run."""
    return pass_at(saved(folder), Arithmetic(level=4), 8, 150, seed=7)


_TRAINED = {"steps": 30, "batch_size": 15, "eval_size": 300, "lr": 3e-4}

CLAIMS = (
    Claim(
        statement="more of the hardest problems are solved by one of eight samples than after GRPO",
        treatment="riskpo", control="grpo", task="arithmetic", metric="pass@8 on level 4", settings=_TRAINED,
        dial=("difficulty of a batch", (("alike (level 4)", {"task.level": 4}), ("mixed (1 to 4)", {"task.level": 0}))),
        search={"lr": (1e-4, 3e-4)}, search_treatment={"credit.baseline": ("upper", "mean")},
        search_control={"credit.std": (True, False)}, measure=tail_pass_at_8,
        analysis="Worse, whether the problems of a batch are alike or mixed: 0.90 against 0.94 when mixed. Five "
        "problems share one advantage, so that a step learns from 24 scores where GRPO has 120; 30 steps do not make "
        "up for that.",
    ),
    Claim(
        statement="the policy's entropy late in training is higher than with GRPO",
        treatment="riskpo", control="grpo", task="arithmetic", metric="entropy", settings=_TRAINED,
        analysis="Twice GRPO's, 0.06 against 0.03 nats, at the same learning rate, untuned. Part of it is that "
        "less has been learnt by then.",
    ),
)  # fmt: skip
