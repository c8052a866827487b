"""Sums, means and variances over the entries where a mask holds."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the entries where `mask` is true; zero when there are none. Scalar."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_std(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased (n - 1) standard deviation over the entries where `mask` is true. Scalar."""
    count = mask.sum()
    centred = (x - masked_mean(x, mask)) * mask
    return (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Zero mean and unit (n - 1) standard deviation over the mask; zero elsewhere. (B, T).

    (x - mean(x)) / (std(x) + eps)

    Equal entries give exact zeros: values are taken relative to the first one, which changes nothing else.
    """
    first = mask.flatten().view(torch.uint8).argmax()
    x = x - x.flatten().index_select(0, first.view(1))
    return (x - masked_mean(x, mask)) / (masked_std(x, mask) + eps) * mask


def last_step(mask: Tensor) -> Tensor:
    """Index of the last true entry of each row, (B,) int64; 0 for empty rows."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    return (steps * mask).amax(1)


def put_last(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) values written at the last true entry of each row of (B, T), zero elsewhere and on empty rows."""
    out = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    values = torch.where(mask.any(1), values, torch.zeros_like(values))
    return out.scatter_(1, last_step(mask)[:, None], values[:, None])


def last_value(values: Tensor, mask: Tensor) -> Tensor:
    """The entry of (B, T) at the last true entry of each row, (B,); that of step 0 on empty rows."""
    return values.gather(1, last_step(mask)[:, None])[:, 0]
