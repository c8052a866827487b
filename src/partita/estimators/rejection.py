"""Statistical rejection sampling: from samples of one distribution to samples of a tilted one.

    pi(y) = ref(y) exp(r(y) / beta) / Z

by accepting a sample y of ref with probability exp((r(y) - max r) / beta) (Liu et al., 2023, arXiv:2309.06657,
eq. 4 and 14). Everything in float64; beta from 0, which accepts the best alone, to infinity, which accepts everything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.checks import check_rank, check_shape


def chances(reward: Tensor, beta: float) -> Tensor:
    """The chance of each candidate to be accepted, (N,): exp((r_i - max_j r_j) / beta).

    Its mean under ref, with the greatest reward of all in place of max_j r_j, is the rate of acceptance (eq. 18).
    Raises ValueError unless beta >= 0 and rewards (N,), at least one, are finite.
    """
    check_rank("reward", reward, 1, "(N,)")
    if not beta >= 0:
        raise ValueError(f"beta: expected 0 or more, got {beta}")
    if not (len(reward) and bool(reward.isfinite().all())):
        raise ValueError("reward: expected one or more numbers, all finite")
    gap = reward.double() - reward.double().max()
    return torch.where(gap == 0, 1.0, (gap / beta).exp())


def accept(reward: Tensor, beta: float, count: int, generator: torch.Generator, key: Tensor | None = None) -> Tensor:
    """Candidates that are accepted, in that order: `count` of them or, where there are fewer, all; int64.

    Algorithm 1: in rounds over the candidates that are left, each is accepted with its chance, the greatest reward
    being that among those left when the round began. reward: (N,), of samples of ref. key: (N,) int64, equal for
    candidates that are the same response (None: all differ); a response is accepted once.

    With ever more candidates the first accepted is a sample of pi, and each further one a sample of pi without the
    responses accepted before (theorem 1). That takes all copies of a response among the candidates, as steps 1 to 4 of
    section 3.2 have it: they carry ref's probabilities. The paper's listing drops copies beforehand, which is the same
    where hardly any response comes twice; where they do, the listing does not tend to pi.
    """
    check_rank("reward", reward, 1, "(N,)")
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    if key is not None:
        check_shape("key", key, reward, "(N,)")
    names = list(range(len(reward))) if key is None else key.tolist()
    taken: dict[int, int] = {}
    reward, left = reward.detach().cpu(), list(range(len(reward)))
    while left and len(taken) < count:
        chance = chances(reward[left], beta)
        draw = torch.rand(len(left), generator=generator, dtype=torch.float64)
        for i, lucky in zip(left, (draw < chance).tolist(), strict=True):
            if lucky and len(taken) < count:
                taken.setdefault(names[i], i)
        left = [i for i in left if names[i] not in taken]
    return torch.tensor(list(taken.values()), dtype=torch.int64)


def first_accepted(reward: Tensor, log_ref: Tensor, beta: float, candidates: int) -> Tensor:
    """The law of the first accepted of N candidates that ref draws among A responses, (A,): how far it is from pi.

        P(y) = sum_m ref(y) a_m(y) [S(ref{r <= m}, alpha_m) - 1{r(y) < m} S(ref{r < m}, alpha_m - ref{r = m})]
        a_m(y) = 1{r(y) <= m} exp((r(y) - m) / beta),  alpha_m = sum_y ref(y) a_m(y)
        S(c, alpha) = sum_(j < N) (c - alpha)^j c^(N - 1 - j) = (c^N - (c - alpha)^N) / alpha

    over the values m of the reward: the chance that the greatest reward among the candidates is m, and that y is the
    first of them to be accepted. One candidate gives ref, infinitely many give pi, and at beta 0 it is the law of the
    best of N. Exact; derived here. reward, log_ref: (A,), log_ref normalised here; candidates: N.
    """
    check_rank("reward", reward, 1, "(A,)")
    check_shape("log_ref", log_ref, reward, "(A,)")
    if candidates < 1:
        raise ValueError(f"candidates: expected 1 or more, got {candidates}")
    ref, r = log_ref.double().softmax(-1), reward.double()
    law = torch.zeros_like(ref)
    for level in r.unique():
        under, below = r <= level, r < level
        weight = torch.zeros_like(ref)
        weight[under] = ref[under] * chances(r[under], beta)
        law += weight * _looks(ref[under].sum(), weight.sum(), candidates)
        law -= weight * below * _looks(ref[below].sum(), weight[below].sum(), candidates)
    return law


def _looks(mass: Tensor, accepted: Tensor, count: int) -> Tensor:
    """S(c, alpha) = (c^N - (c - alpha)^N) / alpha without cancellation; N c^(N - 1) at alpha 0."""
    if not accepted > 0:
        return count * mass ** (count - 1)
    return -(mass**count) * torch.expm1(count * torch.log1p(-(accepted / mass).clamp(max=1.0))) / accepted
