"""Distances between sequences of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.checks import check_shape


def edit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Levenshtein distance of each pair of rows of a and b, (n, r) int64 each; (n,) int64.

        D(i, j) = min(D(i-1, j) + 1, D(i, j-1) + 1, D(i-1, j-1) + [a_i != b_j]),   D(i, 0) = i,  D(0, j) = j

    Insertions, deletions and substitutions cost one each. Raises ValueError for tables of different shapes.
    """
    check_shape("b", b, a, "(n, r)")
    steps = torch.arange(a.shape[1] + 1, device=a.device)
    row = steps.expand(a.shape[0], -1)
    for i in range(a.shape[1]):
        best = torch.minimum(row[:, 1:] + 1, row[:, :-1] + (a[:, i : i + 1] != b).long())
        best = torch.cat((torch.full_like(row[:, :1], i + 1), best), 1)
        row = (best - steps).cummin(1).values + steps  # a run of insertions costs its length
    return row[:, -1]
