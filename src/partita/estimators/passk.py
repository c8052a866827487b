"""Pass@K: the chance that at least one of K samples is right, from n >= K samples of each problem."""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.checks import check_bool, check_rank, check_shape


def pass_at_k(right: Tensor, k: int) -> Tensor:
    """The unbiased estimate of Pass@K of every problem, (P,) float64.

        1 - C(n - c, k) / C(n, k) = 1 - prod_{j < k} (n - c - j) / (n - j)

    Chen et al. (2021), arXiv:2107.03374, section 2.1: n samples, c of them right; the share of all sets of k samples
    that hold a right one. right: (P, n) bool. Raises ValueError unless 1 <= k <= n.
    """
    check_rank("right", right, 2, "(P, n)")
    check_bool("right", right)
    count = right.shape[1]
    if not 1 <= k <= count:
        raise ValueError(f"k: expected 1 to {count}, the samples of a problem, got {k}")
    j = torch.arange(k, dtype=torch.float64, device=right.device)
    wrong = (count - right.sum(1, dtype=torch.float64))[:, None]
    return 1 - ((wrong - j) / (count - j)).prod(1)


def cot_pass_at_k(right: Tensor, chain: Tensor, k: int) -> Tensor:
    """The unbiased estimate of CoT-Pass@K of every problem, (P,) float64.

        1 - C(n - d, k) / C(n, k)

    Wen et al. (2025), arXiv:2506.14245: d of the n samples have both a right answer and a right chain of thought.
    right, chain: (P, n) bool. Never above `pass_at_k(right, k)`.
    """
    check_shape("chain", chain, right, "(P, n)")
    check_bool("chain", chain)
    return pass_at_k(right & chain, k)
