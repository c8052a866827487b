"""BNPO: Beta Normalization Policy Optimization (Xiao et al., 2025), arXiv:2506.02864.

Changes GRPO in one slot: `credit`. A question's advantages are divided by a Beta density at its success rate instead
of by the deviation of its rewards, and the density follows the success rates of the batch as they move.

    A = (R - p(q)) / f_N(p(q); alpha, beta),   alpha = 1 + a/3,  beta = 1 + b/3

(a, b): the Beta distribution whose mean and variance are those of p(q) over the questions of the batch. With
alpha = beta = 1 it is REINFORCE with the question's mean as baseline, with alpha = beta = 3/2 GRPO up to a constant.
Written after the official code (github.com/changyi7231/BNPO) and summaries of the paper; no equation is cited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError, nearest
from partita.core.limits import check_above
from partita.core.paper import Claim, Identity, Paper
from partita.estimators import groups
from partita.papers.baselines.grpo import GRPO
from partita.parts.credit import GroupCredit, GroupRelative, spread, trajectory_return

PAPER = Paper(
    key="bnpo", title="BNPO: Beta Normalization Policy Optimization", arxiv="2506.02864", authors="Xiao et al.",
    year=2025, changes=("credit",), url="https://github.com/changyi7231/BNPO",
)  # fmt: skip

TIGHTEST = 1e4  # a + b of the fitted distribution at most: all questions equally hard would make it infinite


@dataclass(frozen=True)
class BetaNormalised(GroupCredit):
    """Reward minus the question's mean, divided by a Beta density that follows the success rates of the batch (BNPO).

        A_i = (R_i - p_q) / f(p_q; alpha, beta),    f(p; alpha, beta) = p^(alpha-1) (1-p)^(beta-1) / B(alpha, beta)
        alpha = max(1, 1 + a/3),  beta = max(1, 1 + b/3),  a = k m,  b = k (1 - m),  k = m (1 - m) / v - 1

    p_q: mean reward of the question's group; m, v: mean and (n - 1) variance of p_q over the questions of the batch.
    Given to every step of trajectory i. alpha, beta: fixed, where they are not None. low, high: the rewards that mean
    failure and success; others are taken for rates between the two, so that p_q = (mean - low) / (high - low).
    most: the largest factor 1 / f, as in the official code. One question alone: alpha = beta = 1.

    components: names of partial scores (`parts` of the task's outcome, each from 0 to 1) to take one by one in place of
    the reward; the advantage is the mean of theirs, each with a density of its own. Raises UserError for a name that
    the task does not give.

    For rewards of 0 and 1, p_q of a group of G that is not degenerate lies in [1/G, 1 - 1/G]; the density is read there
    for all rewards, since it may be zero at the ends.
    """

    alpha: float | None = None
    beta: float | None = None
    low: float = 0.0
    high: float = 1.0
    most: float = 1e6
    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"credit.{name}: expected a number above 0, or None to fit it, got {value}")
        if not self.low < self.high:
            raise UserError(f"credit.high: expected more than low = {self.low}, got {self.high}")
        check_above("credit.most", self.most)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if self.components and task.domain == "control":
            return "credit.components: partial scores exist in language only; leave it out"
        return super().refuses(recipe, task)

    def __call__(self, batch: Batch) -> Tensor:
        if not self.components:
            return spread(self.advantage(trajectory_return(batch), batch.need("group")), batch)
        each = [self.advantage(component(batch, name), batch.need("group")) for name in self.components]
        return spread(torch.stack(each).mean(0), batch)

    def advantage(self, reward: Tensor, group: Tensor) -> Tensor:
        """A_i of rewards (B,) in groups (B,), (B,)."""
        reward = (reward - self.low) / (self.high - self.low)
        rate = groups.group_mean(reward, group)
        alpha, beta = self.shape(rate, group)
        least = 1 / groups.group_size(group, rate.dtype).clamp(min=2)
        inverse = (-log_density(torch.minimum(torch.maximum(rate, least), 1 - least), alpha, beta)).exp()
        return (reward - rate) * inverse.clamp(max=self.most)

    def shape(self, rate: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta (scalars) for the success rates (B,) of trajectories in groups (B,)."""
        index, count = groups.group_index(group)
        once = rate.new_zeros(count).index_copy_(0, index, rate).clamp(0, 1)
        a, b = fitted(once) if count > 1 else (rate.new_zeros(()), rate.new_zeros(()))
        alpha = 1 + a.clamp(min=0) / 3 if self.alpha is None else rate.new_tensor(self.alpha)
        beta = 1 + b.clamp(min=0) / 3 if self.beta is None else rate.new_tensor(self.beta)
        return alpha, beta


def fitted(rate: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of the Beta distribution with the mean and the (n - 1) variance of `rate` (Q,); scalars.

    Negative where rates vary more than any Beta distribution does; a + b is at most TIGHTEST.
    """
    mean = rate.mean()
    chance = mean * (1 - mean)
    total = chance / rate.var().clamp(min=1e-12) - 1
    total = total.clamp(max=TIGHTEST)
    return total * mean, total * (1 - mean)


def log_density(rate: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """log f(p; alpha, beta) of the Beta distribution at rates in (0, 1), of their shape."""
    normaliser = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    return (alpha - 1) * rate.log() + (beta - 1) * (-rate).log1p() - normaliser


def component(batch: Batch, name: str) -> Tensor:
    """A partial score of every trajectory, (B,)."""
    table = [record["parts"] for record in batch.records or ()]
    if not table:
        raise ValueError("records: the batch has none, so it has no partial scores")
    for parts in table:
        if name not in parts:
            raise UserError(f"credit.components: the task gives no partial score `{name}`; {nearest(name, parts)}")
    return torch.tensor([parts[name] for parts in table], dtype=batch.need("reward").dtype, device=batch.mask.device)


def variance(alpha: float, beta: float, a: float, b: float) -> float:
    """Variance of a question's gradient under p ~ Beta(a, b), up to a factor that normalisation leaves alone.

        E[p (1 - p) / f(p; alpha, beta)^2] * B(a, b) = B(alpha, beta)^2 B(a + 3 - 2 alpha, b + 3 - 2 beta)

    finite for alpha < (a + 3) / 2 and beta < (b + 3) / 2, and least at alpha = 1 + a / 3, beta = 1 + b / 3: there the
    derivatives 2 psi(alpha) - 2 psi(a + 3 - 2 alpha) - ... vanish. Infinity outside.
    """
    x, y = a + 3 - 2 * alpha, b + 3 - 2 * beta
    if min(x, y) <= 0:
        return math.inf
    return math.exp(2 * _log_beta(alpha, beta) + _log_beta(x, y))


def _log_beta(x: float, y: float) -> float:
    return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)


RECIPES = {
    "bnpo": GRPO.but(credit=BetaNormalised()),
    "question_baseline": GRPO.but(credit=BetaNormalised(alpha=1.0, beta=1.0)),
}
FIXED = {"grpo": 1.5, "question_baseline": 1.0}  # alpha = beta of the methods that BNPO contains


def measured_variance(
    arm: str, seed: int, control: str, level: int, relative: bool = False, batches: int = 12
) -> dict[str, float]:
    """Variance of the gradient of a batch of 16 questions with 8 answers each, summed over the weights.

        V = mean_k |g_k|^2 - S,   S = (|sum_k g_k|^2 - sum_k |g_k|^2) / (K (K - 1))

    from K batches on arithmetic, before any training; both arms see the same ones. relative: V / (V + S), the share of
    noise in a squared gradient, which does not depend on the scale of the advantages.
    """
    from partita.loops.run import Generators
    from partita.parts.rollout import Sample
    from partita.policies.language import Language
    from partita.tasks.language.arithmetic import Arithmetic

    fixed = None if arm == "treatment" else FIXED[control]
    credit, streams, task = BetaNormalised(fixed, fixed), Generators(seed), Arithmetic(level=level)
    policy = Language().build(task, False, streams["init"])
    weights = list(policy.trainable().values())
    total, squares = torch.zeros(sum(w.numel() for w in weights), dtype=torch.float64), 0.0
    for _ in range(batches):
        problems = task.problems(16, streams["problems"])
        batch = Sample()(policy, task, problems, 8, streams["responses"], frozenset())
        loss = -(GRPO.aggregate(batch) * credit(batch) * policy.evaluate(batch).logp).sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).double()
        total += gradient
        squares += float(gradient.square().sum())
    signal = (float(total.square().sum()) - squares) / (batches * (batches - 1))
    noise = squares / batches - signal
    return {"value": noise / (noise + signal) if relative else noise, "noise": noise, "signal": signal}


def from_the_optimum(seed: int) -> float:
    """How far the least `variance` over alpha and beta, found numerically, is from 1 + a / 3 and 1 + b / 3."""
    from scipy.optimize import minimize

    a, b = (0.2 + 4 * torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).tolist()
    found = minimize(
        lambda x: min(variance(x[0], x[1], a, b), 1e9), (1.0, 1.0), method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000},
    )  # fmt: skip
    return float(max(abs(found.x[0] - 1 - a / 3), abs(found.x[1] - 1 - b / 3)))


def from_grpo(seed: int) -> float:
    """Largest difference between the advantages with alpha = beta = 3/2 and pi/8 times those of GRPO."""
    g = torch.Generator().manual_seed(seed)
    rate = torch.rand(16, 1, generator=g, dtype=torch.float64)
    reward = (torch.rand(16, 8, generator=g, dtype=torch.float64) < rate).double().flatten()[:, None]
    batch = Batch(mask=torch.ones_like(reward, dtype=torch.bool), reward=reward, group=torch.arange(128) // 8)
    theirs = GroupRelative(eps=1e-12, unbiased=False)(batch)
    return float((BetaNormalised(1.5, 1.5)(batch) - math.pi / 8 * theirs).abs().max())


_VARIANCE: dict[str, Any] = dict(task="arithmetic", better="lower", experiment=measured_variance)

CLAIMS = (
    Claim(
        statement="the gradient varies less than with GRPO's normalisation where success rates are skewed",
        treatment="bnpo", control="grpo", metric="variance of the gradient", kind="ratio",
        settings={"control": "grpo"},
        dial=("success rates", (("even (level 2)", {"level": 2}), ("skewed (level 4)", {"level": 4}))), **_VARIANCE,
        analysis="Only where success rates are skewed: at level 2, where they are even, the gradient of BNPO varies "
        "4% more. The effect is on the raw variance, which depends on the scale of the advantages; see the third "
        "statement.",
    ),
    Claim(
        statement="the gradient varies less than with a question's mean as baseline and no normalisation",
        treatment="bnpo", control="question_baseline", metric="variance of the gradient", kind="ratio",
        settings={"control": "question_baseline", "level": 4}, **_VARIANCE,
    ),
    Claim(
        statement="relative to the gradient itself, too, there is less noise than with GRPO's normalisation",
        treatment="bnpo", control="grpo", metric="share of noise in the squared gradient",
        settings={"control": "grpo", "level": 4, "relative": True}, **_VARIANCE,
        analysis="The gradient of BNPO varies less because its advantages are smaller where success rates are "
        "skewed, and the gradient itself shrinks more than its noise does: 0.50 of a squared gradient is noise, with "
        "GRPO 0.45. An optimiser that rescales gradients (Adam) sees this ratio, not the raw variance.",
    ),
    Identity(
        statement="for success rates that follow Beta(a, b), variance is least at alpha = 1 + a/3, beta = 1 + b/3",
        measure=from_the_optimum, expected=0.0, tolerance=1e-3, seeds=8,
    ),
    Identity(
        statement="with alpha = beta = 3/2 the advantages are those of GRPO times pi/8",
        measure=from_grpo, expected=0.0, tolerance=1e-9, seeds=8,
    ),
)  # fmt: skip
