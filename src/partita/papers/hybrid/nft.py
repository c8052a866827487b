"""Bridging Supervised Learning and Reinforcement Learning in Math Reasoning (Chen et al., 2025), arXiv:2505.18116.

Negative-aware fine-tuning: maximum likelihood on right answers and, through a policy of wrong answers that the policy
of right ones implies, on wrong answers too. With r_q the share of right answers to a question, the sampler splits into
both, so that what is learnt of one is known of the other:

    r_q pi+(y|q) + (1 - r_q) pi-(y|q) = mu(y|q)                                                           (eq. 7)
    loss_t = -omega(q) [r log R_t + (1 - r) log max_v((1 - r_q R_t) / (1 - r_q), eps)],   R_t = pi(a_t) / mu(a_t)

The second line is eq. 10; max_v clips the value and keeps the gradient. On the sampler itself its gradient is that of
Dr. GRPO (omega = 1 - r_q) or of GRPO (omega = sqrt((1 - r_q) / r_q)), proposition 4.2. Changes DAPO in the slots
`credit`, whose advantages r - r_q tell both r and r_q, and `objective`. The recipe `rejection_tuning` is the paper's
baseline: right answers alone, omega = 1. Equations are numbered as in notes on the paper's third version, which
itself was not at hand; the official code was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.paper import Claim, Identity, Paper
from partita.estimators.masked import masked_mean
from partita.estimators.ratios import log_ratio
from partita.papers.baselines.dapo import DAPO
from partita.parts.credit import GroupRelative
from partita.parts.objective import ClippedSurrogate, Objective

PAPER = Paper(
    key="nft",
    title="Bridging Supervised Learning and Reinforcement Learning in Math Reasoning",
    arxiv="2505.18116", authors="Chen et al.", year=2025, changes=("credit", "objective"),
)  # fmt: skip

Weighting = Literal["linear", "root", "one"]
LEAST_RATE, MOST_LOG_RATIO = 0.02, 10.0  # guards of the official code: on r_q, and on log R


@dataclass(frozen=True)
class NegativeAware(Objective):
    """Likelihood of right answers, and of wrong ones under the policy that the right ones imply (NFT, eq. 10).

        A > 0:  r_q = 1 - A,   loss = -omega(r_q) * log R
        A < 0:  r_q = -A,      loss = -omega(r_q) * negative * log max_v((1 - r_q R) / (1 - r_q), eps)
        max_v(x, eps) = x + sg(max(x, eps) - x),   R = pi(a_t | s_t) / mu(a_t | s_t)

    Chen et al. (2025), arXiv:2505.18116. Advantages must be r - mean(r) over the group (`group_relative` without std)
    of rewards 0 or 1; a score between counts as right where it is above its group's mean. omega: `linear`, 1 - r_q;
    `root`, sqrt((1 - r_q) / r_q); `one`. eps bounds how strongly a wrong answer is pushed down. negative: weight of
    wrong answers; 0 is rejection fine-tuning. r_q is kept within 0.02 and 0.98, and log R below 10, as in the official
    code.
    """

    eps: float = 1.0
    omega: Weighting = "linear"
    negative: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise UserError(f"objective.eps: expected a number above 0 and at most 1, got {self.eps}")
        if self.omega not in get_args(Weighting):
            raise UserError(f"objective.omega: expected one of {', '.join(get_args(Weighting))}, got {self.omega!r}")
        if not 0 <= self.negative < float("inf"):
            raise UserError(f"objective.negative: expected 0 or more, got {self.negative}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        credit = recipe.credit
        if not isinstance(credit, GroupRelative) or credit.std or recipe.whiten != "none":
            return (
                "objective negative_aware reads a question's success rate from advantages r - mean(r); "
                "use --credit group_relative --credit.no-std, and leave --whiten out"
            )
        return None

    def weights(self, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """r_q and omega(q) at each step, (B, T)."""
        rate = torch.where(advantage > 0, 1 - advantage, -advantage).clamp(LEAST_RATE, 1 - LEAST_RATE)
        if self.omega == "linear":
            return rate, 1 - rate
        return rate, ((1 - rate) / rate).sqrt() if self.omega == "root" else torch.ones_like(rate)

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        advantage = batch.need("advantage")
        rate, omega = self.weights(advantage)
        log_r = log_ratio(out.logp, batch.need("logp"))
        implied = (1 - rate * log_r.clamp(max=MOST_LOG_RATIO).exp()) / (1 - rate)
        implied = implied + (implied.clamp(min=self.eps) - implied).detach()
        right, wrong = (advantage > 0).to(omega.dtype), (advantage < 0).to(omega.dtype)
        return -omega * (right * log_r + self.negative * wrong * implied.log())

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        advantage = batch.need("advantage")
        rate, _ = self.weights(advantage)
        ratio = log_ratio(out.logp, batch.need("logp")).exp()
        clipped = (1 - rate * ratio) / (1 - rate) < self.eps
        return {"clip_fraction": masked_mean((clipped & (advantage < 0)).to(ratio.dtype), batch.mask)}


def gradient_gap(seed: int) -> float:
    """How far NFT's gradient is from that of GRPO without the deviation, on a model's own answers.

        |g - g'| / |g'|,    norms over all weights

    tiny-0.3m in float64, six answers to each of eight sums of two digits, drawn with `seed`.
    """
    from partita.loops.run import Generators
    from partita.parts.rollout import Sample
    from partita.policies.language import Language
    from partita.tasks.language.arithmetic import Arithmetic

    rng, task = Generators(seed), Arithmetic(level=2)
    policy = Language().build(task, False, rng["init"])
    policy.module.double()
    problems = task.problems(8, rng["curriculum"])
    batch = Sample()(policy, task, problems, 6, rng["rollout"], frozenset())
    batch = batch.but(advantage=NFT.credit(batch.but(reward=batch.need("reward").double())))
    with torch.no_grad():
        batch = batch.but(logp=policy.evaluate(batch).logp)  # strictly on-policy: the learner's own log-probs
    found = []
    for objective in (NFT.objective, ClippedSurrogate()):
        loss = (NFT.aggregate(batch) * objective(policy.evaluate(batch), batch)).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.trainable().values()))]))
    return float((found[0] - found[1]).norm() / found[1].norm())


NFT = DAPO.but(credit=GroupRelative(std=False), objective=NegativeAware())

RECIPES = {"nft": NFT, "rejection_tuning": NFT.but(objective=NegativeAware(omega="one", negative=0.0))}

CLAIMS = (
    Claim(
        statement="beats rejection fine-tuning where most answers are wrong",
        treatment="nft", control="rejection_tuning", task="countdown", metric="success",
        dial=("level of the problems", (("1", {"task.level": 1}), ("2", {"task.level": 2}))),
        settings={"policy.model": "tiny-0.3m", "steps": 50, "batch_size": 16, "minibatches": 4, "eval_size": 300},
        search={"lr": (1e-4, 3e-4, 1e-3)},
        analysis="At this scale wrong answers add nothing to right ones: both arms end alike where most answers are "
        "wrong, and rejection fine-tuning is 0.008 ahead where most are right. Both learn to the same level within the "
        "50 steps; what negative answers are said to keep, diversity over long training, this claim does not measure.",
    ),
    Identity(
        statement="its gradient on-policy is that of GRPO without the division by the deviation (relative distance)",
        measure=gradient_gap, expected=0.0, tolerance=1e-6, seeds=8,
    ),
)  # fmt: skip
