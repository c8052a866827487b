"""Shape contracts, checked where a public function is entered."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_shape(name: str, value: Tensor, like: Tensor | tuple[int, ...], layout: str = "(B, T)") -> None:
    """Raise ValueError unless `value` has the shape of `like`; the message names the argument.

    >>> import torch
    >>> check_shape("advantage", torch.zeros(4), (4, 7))
    Traceback (most recent call last):
    ValueError: advantage: expected (B, T) = (4, 7), got (4,)
    """
    expected = tuple(like) if isinstance(like, tuple) else tuple(like.shape)
    if tuple(value.shape) != expected:
        raise ValueError(f"{name}: expected {layout} = {expected}, got {tuple(value.shape)}")


def check_rank(name: str, value: Tensor, rank: int, layout: str = "(B, T)") -> None:
    """Raise ValueError unless `value` has `rank` dimensions."""
    if value.dim() != rank:
        raise ValueError(f"{name}: expected {layout}, rank {rank}, got shape {tuple(value.shape)}")


def check_float(name: str, value: Tensor) -> None:
    """Raise ValueError unless `value` holds floating-point numbers."""
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {value.dtype}")


def check_bool(name: str, value: Tensor) -> None:
    """Raise ValueError unless `value` holds booleans."""
    if value.dtype.is_floating_point or value.dtype.is_complex or str(value.dtype) != "torch.bool":
        raise ValueError(f"{name}: expected a boolean tensor, got {value.dtype}")
