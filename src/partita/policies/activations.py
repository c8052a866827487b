"""Activations of control networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, relu_
from torch.nn.functional import silu


def _tanh(x: Tensor) -> Tensor:
    return x.mul(2).sigmoid_().mul_(2).sub_(1)


class _Tanh(torch.autograd.Function):
    """tanh through the logistic function, which torch computes several times faster on a CPU.

        tanh(x) = 2 / (1 + exp(-2 x)) - 1,    d tanh(x) / dx = 1 - tanh(x)^2

    The absolute error is of the order of the rounding unit (1e-7 in float32).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grads[0], y)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return _Tanh.apply(x) if torch.is_grad_enabled() else _tanh(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": relu_, "silu": silu}
