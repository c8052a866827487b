"""Random numbers and small constants, on any device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(
    size: tuple[int, ...], low: float, high: float, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """Uniform float32 numbers of [low, high), drawn where the generator lives and moved to `device`."""
    drawn = torch.rand(size, generator=generator, device=generator.device)
    return drawn.mul_(high - low).add_(low).to(device)


def normal(size: tuple[int, ...], scale: float, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Centred normal float32 numbers with standard deviation `scale`."""
    return torch.randn(size, generator=generator, device=generator.device).mul_(scale).to(device)


@functools.lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector of constants of the dtype and device of `like`, made once; never write to it."""
    return _constant(tuple(values), like.dtype, like.device)
