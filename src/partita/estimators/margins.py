"""Log-probabilities of whole responses, and the losses of preference learning on their margins.

For a prompt x, a response y, the policy pi and the reference ref:

    r(x, y) = beta * log(pi(y|x) / ref(y|x)),    h = r(x, y_1) - r(x, y_2)

Every loss is (M,), one a comparison; `prefer` (M,) is the probability that y_1 is preferred, so that a label is 1,
label smoothing is 1 - eps, and a soft label any number in between.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from partita.core.checks import check_rank, check_shape


def response_logp(logp: Tensor, mask: Tensor, mean: bool = False) -> Tensor:
    """log pi(y|x) = sum_t log pi(y_t | x, y_<t) of every row of (B, T), (B,); its mean over tokens if `mean`."""
    check_rank("logp", logp, 2, "(B, T)")
    check_shape("mask", mask, logp)
    total = (logp * mask).sum(1)
    return total / mask.sum(1).clamp(min=1) if mean else total


def _soft(loss_first: Tensor, loss_second: Tensor, prefer: Tensor) -> Tensor:
    """The expectation of a loss over which of the two is preferred."""
    return prefer * loss_first + (1 - prefer) * loss_second


def sigmoid_loss(h: Tensor, prefer: Tensor) -> Tensor:
    """-[p log s(h) + (1 - p) log s(-h)]  (DPO, Rafailov et al., 2023, arXiv:2305.18290, eq. 7), (M,)."""
    check_shape("prefer", prefer, h, "(M,)")
    return -_soft(logsigmoid(h), logsigmoid(-h), prefer)


def hinge_loss(h: Tensor, prefer: Tensor) -> Tensor:
    """max(0, 1 - h) in expectation over the label (SLiC, Zhao et al., 2023, arXiv:2305.10425; RSO's form), (M,)."""
    check_shape("prefer", prefer, h, "(M,)")
    return _soft((1 - h).clamp(min=0), (1 + h).clamp(min=0), prefer)


def ipo_loss(d: Tensor, prefer: Tensor, beta: float) -> Tensor:
    """(d - 1 / (2 beta))^2, d = h / beta, in expectation over the label (IPO, arXiv:2310.12036, eq. 17)."""
    check_shape("prefer", prefer, d, "(M,)")
    goal = 1 / (2 * beta)
    return _soft((d - goal).square(), (-d - goal).square(), prefer)


def odds_ratio(mean_first: Tensor, mean_second: Tensor) -> Tensor:
    """log odds(y_1) - log odds(y_2), odds = P / (1 - P), P = exp(mean_t log pi(y_t)) (ORPO, arXiv:2403.07691)."""
    check_shape("mean_second", mean_second, mean_first, "(M,)")

    def log_rest(mean: Tensor) -> Tensor:
        return torch.log1p(-mean.exp().clamp(max=1 - 1e-6))

    return mean_first - mean_second - (log_rest(mean_first) - log_rest(mean_second))


def kto_loss(r: Tensor, label: Tensor, z: Tensor, desirable: float, undesirable: float) -> Tensor:
    """lambda_y - v, v = lambda_D s(r - z) for desirable, lambda_U s(z - r) for undesirable responses.

    (KTO, Ethayarajh et al., 2024, arXiv:2402.01306). r: beta * log-ratio (B,); label: 1 or 0; z: scalar, the
    reference point, beta * KL(pi || ref), not differentiated.
    """
    check_shape("label", label, r, "(B,)")
    weight = torch.where(label > 0.5, desirable, undesirable)
    side = torch.where(label > 0.5, r - z, z - r)
    return weight * (1 - side.sigmoid())
