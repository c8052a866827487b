"""Statistics over trajectories of the same problem."""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.checks import check_rank, check_shape


def group_index(group: Tensor) -> tuple[Tensor, int]:
    """Group ids (B,) as indices 0..G-1 in order of id, and G."""
    unique, index = group.unique(return_inverse=True)
    return index, len(unique)


def group_sum(x: Tensor, group: Tensor) -> Tensor:
    """Sum of `x` (B,) over each trajectory's group, given back to every member, (B,)."""
    check_rank("x", x, 1, "(B,)")
    check_shape("group", group, x, "(B,)")
    index, count = group_index(group)
    return torch.zeros(count, dtype=x.dtype, device=x.device).index_add_(0, index, x)[index]


def group_size(group: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Number of trajectories in each trajectory's group, (B,)."""
    return group_sum(torch.ones(group.shape, dtype=dtype, device=group.device), group)


def group_range(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest `x` (B,) of each trajectory's group, both (B,)."""
    index, count = group_index(group)
    low = torch.full((count,), torch.inf, dtype=x.dtype, device=x.device).scatter_reduce_(0, index, x, "amin")
    high = torch.full((count,), -torch.inf, dtype=x.dtype, device=x.device).scatter_reduce_(0, index, x, "amax")
    return low[index], high[index]


def group_mean(x: Tensor, group: Tensor) -> Tensor:
    """Mean of `x` (B,) over each trajectory's group, (B,).

    Held between the least and the greatest member, so that equal members differ from it by exactly zero: the
    rounding of a sum would otherwise be divided by a deviation of its own size.
    """
    return (group_sum(x, group) / group_size(group, x.dtype)).clamp(*group_range(x, group))


def group_std(x: Tensor, group: Tensor, unbiased: bool = True) -> Tensor:
    """Standard deviation of `x` (B,) over each group, (B,); (n - 1) when `unbiased`, 0 for single members."""
    size = group_size(group, x.dtype)
    centred = x - group_mean(x, group)
    divisor = (size - 1).clamp(min=1) if unbiased else size
    return (group_sum(centred.square(), group) / divisor).sqrt()


def leave_one_out(x: Tensor, group: Tensor) -> Tensor:
    """Mean of `x` over the other members of each trajectory's group, (B,); 0 for single members.

    Held between the least and the greatest member, as `group_mean` is.

    Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!"
    """
    size = group_size(group, x.dtype)
    others = ((group_sum(x, group) - x) / (size - 1).clamp(min=1)).clamp(*group_range(x, group))
    return torch.where(size > 1, others, torch.zeros_like(x))


def degenerate(x: Tensor, group: Tensor) -> Tensor:
    """True for trajectories of a group in which all `x` are equal, (B,) bool."""
    low, high = group_range(x, group)
    return high == low
