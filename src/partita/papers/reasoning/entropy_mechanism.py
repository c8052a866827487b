"""The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models (Cui et al., 2025), arXiv:2505.22617.

A softmax policy loses entropy at the rate of the covariance between log-probabilities and what an update does to the
logits (lemma 1), and a few tokens make up most of it:

    H(pi') - H(pi) ~ -Cov_{a ~ pi}(log pi(a), z'_a - z_a)
    Cov(y_i) = (log pi(y_i) - mean_j log pi(y_j)) (A_i - mean_j A_j),   over the tokens of a batch        (eq. 10)

Changes GRPO in the slot `objective`: tokens of high covariance are left out of the gradient (Clip-Cov, recipe
`clip_cov`) or held by a divergence from the sampler (KL-Cov, the recipe of this name). As in the paper's section 4.3,
a batch gives eight updates; losses are averaged over tokens, as in the official code. KL-Cov does nothing in the
first update after sampling, where the divergence is zero. `fit` measures the law R = -a exp(H) + b (eq. 6). Equations
are numbered as in notes on the paper, which itself was not at hand; the official code was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_least
from partita.core.paper import Claim, Identity, Paper
from partita.estimators.masked import masked_mean
from partita.estimators.ratios import kl_estimate, log_ratio
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import TokenMean
from partita.parts.credit import check_unit
from partita.parts.objective import Objective

PAPER = Paper(
    key="entropy_mechanism",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    arxiv="2505.22617", authors="Cui et al.", year=2025, changes=("objective", "aggregate"),
)  # fmt: skip


def covariance(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Each step's share in the covariance of log-probability and advantage, (B, T), zero outside the mask.

        Cov(y_i) = (log pi(y_i) - mean_j log pi(y_j)) (A_i - mean_j A_j)

    Cui et al. (2025), arXiv:2505.22617, eq. 10; means are over the mask, and so is that of Cov the covariance.
    """
    return (logp - masked_mean(logp, mask)) * (advantage - masked_mean(advantage, mask)) * mask


class CovarianceObjective(Objective):
    """Base of the plain surrogate -w_t A_t that treats some steps apart, chosen by their covariance."""

    whole = True
    share: float

    def covariances(self, out: Outputs, batch: Batch) -> Tensor:
        """Covariance of each step under the policy as it is, (B, T), without gradient."""
        return covariance(out.logp.detach(), batch.need("advantage"), batch.mask)

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {"covariance": masked_mean(self.covariances(out, batch), batch.mask)}


@dataclass(frozen=True)
class KLCov(CovarianceObjective):
    """The steps of highest covariance pay for leaving the sampler (KL-Cov, Cui et al., 2025, eq. 13 and 14).

        loss_t = -w_t A_t + coef * k_t    for the share * N steps of highest Cov, else -w_t A_t

    arXiv:2505.22617. share: k, 2e-3 for a model of 7 billion parameters and 2e-4 for one of 32; at least one step
    unless it is 0, as in the official code. coef: beta. estimator of KL(mu || pi) at one step: abs, |log w_t|, as in
    the paper's listing; k2, (log w_t)^2 / 2; k3, w_t - 1 - log w_t, unbiased. None has a gradient at w_t = 1. N: the
    steps of the minibatch.
    """

    share: float = 2e-3
    coef: float = 1.0
    estimator: Literal["abs", "k2", "k3"] = "abs"

    def __post_init__(self) -> None:
        check_unit("objective.share", self.share)
        check_least("objective.coef", self.coef)
        if self.estimator not in ("abs", "k2", "k3"):
            raise UserError(f"objective.estimator: expected abs, k2 or k3, got {self.estimator!r}")

    def chosen(self, out: Outputs, batch: Batch) -> Tensor:
        """The steps of highest covariance, (B, T) bool."""
        cov = self.covariances(out, batch).masked_fill(~batch.mask, -math.inf).flatten()
        count = min(number(self.share, batch), int(batch.mask.sum()))
        return torch.zeros_like(cov, dtype=torch.bool).index_fill(0, cov.topk(count).indices, True).view_as(batch.mask)

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        log_w = log_ratio(out.logp, batch.need("logp"))
        penalty = log_w.abs() if self.estimator == "abs" else kl_estimate(-log_w, 0 * log_w, self.estimator)
        return -log_w.exp() * batch.need("advantage") + self.coef * penalty * self.chosen(out, batch)


@dataclass(frozen=True)
class ClipCov(CovarianceObjective):
    """Some steps of high covariance are left out of the gradient (Clip-Cov, Cui et al., 2025, eq. 11 and 12).

        loss_t = 0    for floor(share * N) steps drawn uniformly from those of low <= Cov <= high, else -w_t A_t

    arXiv:2505.22617. share: r; at least one step unless it is 0, as in the official code. low, high: omega, bounds on
    the covariance. N: the steps of the minibatch. The paper's loss has no bounds on the ratio; the official scripts add
    PPO's at 0 and 2. Draws come from a generator of its own, started at `seed` and held by checkpoints.
    """

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    seed: int = 0
    _draws: dict[str, torch.Generator] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_unit("objective.share", self.share)
        if not -math.inf < self.low < self.high < math.inf:
            raise UserError(f"objective.high: expected low < high, got {self.low} and {self.high}")

    def _generator(self) -> torch.Generator:
        return self._draws.setdefault("generator", torch.Generator().manual_seed(self.seed))

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        loss = -log_ratio(out.logp, batch.need("logp")).exp() * batch.need("advantage")
        cov = self.covariances(out, batch)
        places = ((cov >= self.low) & (cov <= self.high) & batch.mask).flatten().nonzero()[:, 0]
        drawn = torch.randperm(len(places), generator=self._generator())[: number(self.share, batch)]
        left_out = torch.zeros_like(batch.mask).flatten().index_fill(0, places[drawn.to(places.device)], True)
        return loss.masked_fill(left_out.view_as(batch.mask), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self._generator().get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator().set_state(state["draws"])


def number(share: float, batch: Batch) -> int:
    """How many steps a share of the minibatch's is: rounded down, but at least one unless the share is 0."""
    return max(1, int(share * int(batch.mask.sum()))) if share else 0


def entropy_change(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Measured change of entropy in each state, in nats, and what its first order says of it; both (...).

        H(pi') - H(pi) ~ -sum_a pi_a (log pi_a - sum_b pi_b log pi_b) (z'_a - z_a)

    before, after: logits (..., A), up to a constant of each state, so that log-probabilities serve as well. Cui et al.
    (2025), arXiv:2505.22617, lemma 1; the two differ by the square of the step.
    """
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    p = old.exp()
    entropy = -(p * old).sum(-1)
    measured = -(new.exp() * new).sum(-1) - entropy
    return measured, -(p * (old + entropy[..., None]) * (after - before)).sum(-1)


@dataclass(frozen=True)
class Law:
    """A fit of R = -a exp(H) + b; `r2` is the share of R's variance that it explains."""

    a: float
    b: float
    r2: float

    def at(self, entropy: float) -> float:
        """R at an entropy in nats; at 0, where all of it is spent, the ceiling."""
        return self.b - self.a * math.exp(entropy)


def fit(rows: Sequence[dict[str, Any]], performance: str = "success") -> Law:
    """The least-squares fit of performance and entropy over a run's metrics (one dictionary a step).

        R = -a exp(H) + b

    Cui et al. (2025), arXiv:2505.22617, eq. 6, there with the accuracy on held-out problems; here with a metric of the
    steps. Rows without either number are left out. Raises ValueError unless two rows differ in entropy.
    """
    pairs = [(float(r["entropy"]), float(r[performance])) for r in rows if "entropy" in r and performance in r]
    if len({h for h, _ in pairs}) < 2:
        raise ValueError(f"rows: expected two or more with different `entropy` and a `{performance}`, got {len(pairs)}")
    h, r = torch.tensor(pairs, dtype=torch.float64).T
    x, mean = h.exp(), r.mean()
    slope = ((x - x.mean()) * (r - mean)).sum() / (x - x.mean()).square().sum()
    b = mean - slope * x.mean()
    left, total = (r - slope * x - b).square().sum(), (r - mean).square().sum()
    return Law(-float(slope), float(b), 1.0 - float(left / total) if float(total) > 0 else 1.0)


def entropy_slope(seed: int) -> float:
    """The slope of measured entropy changes on those that lemma 1 foretells, over the states of a batch; 1 if it holds.

        sum_s dH_s p_s / sum_s p_s^2,    p_s = -Cov_{a ~ pi(.|s)}(log pi(a|s), z'_a - z_a)

    tiny-0.3m on countdown, after one update of the plain surrogate on 16 groups of eight, drawn with `seed`.
    """
    from partita.loops.on_policy import train
    from partita.loops.run import Generators, Run
    from partita.parts.rollout import Sample
    from partita.policies.language import Language
    from partita.tasks.language.countdown import Countdown

    rng, task = Generators(seed), Countdown(level=1)
    policy = Language().build(task, False, rng["init"])
    problems = task.problems(16, rng["curriculum"])
    batch = Sample()(policy, task, problems, 8, rng["rollout"], frozenset())
    tokens = torch.arange(policy.head.weight.shape[0]).expand(*batch.mask.shape, -1)
    states = batch.but(inputs={**batch.inputs, "alternatives": tokens})

    def logits() -> Tensor:
        with torch.no_grad():
            return policy.evaluate(states).need("alternatives")[batch.mask].double()

    before = logits()
    train(KL_COV.but(steps=1, minibatches=1, batch_size=16, lr=2e-5), policy, task, Run(seed))
    measured, foretold = entropy_change(before, logits())
    return float((measured * foretold).sum() / foretold.square().sum())


KL_COV = GRPO.but(objective=KLCov(), aggregate=TokenMean(), minibatches=8)

RECIPES = {"entropy_mechanism": KL_COV, "clip_cov": KL_COV.but(objective=ClipCov())}

_SETTINGS = {
    "policy.model": "tiny-0.3m", "task.level": 2, "aggregate": "token_mean", "steps": 60, "batch_size": 16,
    "eval_size": 300,
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="higher success than GRPO where a batch gives several updates",
        treatment="entropy_mechanism", control="grpo", task="countdown", metric="success",
        dial=("updates on each batch", (("1", {"minibatches": 1}), ("8", {"minibatches": 8}))), settings=_SETTINGS,
        search={"lr": (3e-4, 6e-4)}, search_treatment={"objective.share": (0.02, 0.2)},
        search_control={"objective.clip_high": (0.2, 0.28)},
        analysis="Entropy is kept up, as the next statement has it, and success is not higher for it: 0.52 in "
        "both arms after 60 steps of eight updates each, and a little lower where a batch gives one "
        "update.",
    ),
    Claim(
        statement="higher entropy late in training than GRPO where a batch gives several updates",
        treatment="entropy_mechanism", control="grpo", task="countdown", metric="entropy",
        settings={**_SETTINGS, "minibatches": 8}, search={"lr": (3e-4, 6e-4)},
        search_treatment={"objective.share": (0.2,)}, search_control={"objective.clip_high": (0.2,)},
        analysis="0.20 against 0.14 nats, on every seed.",
    ),
    Identity(
        statement="entropy changes by the covariance of log-probabilities and changes of logits (slope over states)",
        measure=entropy_slope, expected=1.0, tolerance=0.05, seeds=8,
    ),
)  # fmt: skip
