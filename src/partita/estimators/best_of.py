"""Best of n: what is chosen among n samples of a problem by somebody's scores, from N >= n samples of each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from partita.core.checks import check_rank, check_shape


def best_of(value: Tensor, judge: Tensor, n: int) -> Tensor:
    """The expected value of the sample that the judge likes best among n of a problem, (P,) float64.

        sum_i value_(i) C(i - 1, n - 1) / C(N, n),    i: rank by the judge, 1 the worst of N

    The exact mean over all sets of n of the N samples (Nakano et al., 2021, arXiv:2112.09332; as eq. 8 of Coste et al.,
    2023, arXiv:2310.02743). Samples that the judge likes alike are chosen alike often. value, judge: (P, N). Raises
    ValueError unless 1 <= n <= N.
    """
    check_rank("value", value, 2, "(P, N)")
    check_shape("judge", judge, value, "(P, N)")
    total = value.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"n: expected 1 to {total}, the samples of a problem, got {n}")
    ranked, order = judge.double().sort(1)
    rank = torch.arange(1, total + 1, dtype=torch.float64, device=value.device)
    log_chance = _log_choose((rank - 1).clamp(min=n - 1), n - 1) - _log_choose(rank[-1], n)
    chance = torch.where(rank >= n, log_chance.exp(), 0.0)
    tie = torch.cat((ranked.new_zeros(len(ranked), 1), (ranked[:, 1:] != ranked[:, :-1]).double()), 1).cumsum(1).long()
    shared = torch.zeros_like(ranked).scatter_add_(1, tie, chance.expand_as(ranked))
    count = torch.zeros_like(ranked).scatter_add_(1, tie, torch.ones_like(ranked)).clamp(min=1)
    return (value.double().gather(1, order) * (shared / count).gather(1, tie)).sum(1)


def best_of_kl(n: int) -> float:
    """How far best-of-n is from the policy that was sampled, in nats, whoever judges.

        KL = log n - (n - 1) / n

    (Coste et al., 2023, arXiv:2310.02743, eq. 1). Exact where no two samples are equal; else an upper limit.
    """
    if n < 1:
        raise ValueError(f"n: expected 1 or more, got {n}")
    return math.log(n) - (n - 1) / n


def _log_choose(top: Tensor, k: int) -> Tensor:
    """log C(top, k)."""
    return torch.lgamma(top + 1) - torch.lgamma(top - k + 1) - math.lgamma(k + 1)
