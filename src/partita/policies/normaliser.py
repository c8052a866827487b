"""Running mean and variance of observations, part of the policy that is saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normaliser(nn.Module):
    """Standardises with statistics of everything that `update` has seen (Chan et al., 1983, parallel variance).

    y = clip((x - mean) / sqrt(var + 1e-8), -clip, clip)
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in observations (..., *shape)."""
        rows = x.reshape(-1, *self.mean.shape).to(self.mean.dtype)
        count = self.count + rows.shape[0]
        share = (rows.shape[0] / count).to(self.mean.dtype)
        shift = rows.mean(0) - self.mean
        self.var.copy_(
            (1 - share) * self.var + share * rows.var(0, correction=0) + share * (1 - share) * shift.square()
        )
        self.mean.add_(share * shift)
        self.count.copy_(count)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * (self.var + 1e-8).rsqrt()).clamp(-self.clip, self.clip)
