"""`Stack`: several networks of one shape, whose layers are one batched product each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from partita.core import products
from partita.policies.activations import ACTIVATIONS


class Stack(nn.Module):
    """`members` multilayer perceptrons that share nothing; layer i of all of them is one product.

        h_k <- f(h_k W_k + b_k),    k = 1 .. members

    weights (members, inputs, outputs), biases (members, 1, outputs), both drawn uniformly within 1 / sqrt(inputs), the
    last layer within `last` / sqrt(inputs). norm: layer normalisation (without scale) before every activation. rounded:
    products between hidden layers, forwards and backwards, take their factors and put out their results in bfloat16;
    the first and the last layer, weights, sums over a batch and activations stay as they are.
    """

    def __init__(
        self, members: int, sizes: list[int], activation: str, generator: torch.Generator, norm: bool = False,
        last: float = 1.0, rounded: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.members, self.norm, self.activation, self.rounded = members, norm, ACTIVATIONS[activation], rounded
        self.fused = activation == "relu" and not norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (rows, columns) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            bound = rows**-0.5 * (last if i == len(sizes) - 2 else 1.0)
            for values, shape in ((self.weights, (members, rows, columns)), (self.biases, (members, 1, columns))):
                values.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator)))
        self._layers = tuple(self.weights), tuple(self.biases)  # a parameter list is slow to walk

    def forward(self, x: Tensor, twice: bool = False, first: int | None = None) -> Tensor:
        """(N, inputs), read by every member, or (members, N, inputs) -> (members, N, outputs).

        twice: the result's gradient will be differentiated again, which the fast way cannot do. first: of so many
        members alone, where there are more.
        """
        weights, biases = self._layers
        if first is not None and first < self.members:
            weights, biases = tuple(w[:first] for w in weights), tuple(b[:first] for b in biases)
        x = x.expand(len(weights[0]), *x.shape) if x.dim() == 2 else x
        if self.fused and not twice:
            if not torch.is_grad_enabled():
                return _through(self.rounded, x, list(weights), biases)[0]
            return _Rectified.apply(self.rounded, x, *weights, *biases)
        last = len(weights) - 1
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if self.rounded and 0 < i < last:
                x = torch.bmm(x.bfloat16(), weight.bfloat16()).to(x.dtype) + bias
            elif weight.shape[-1] == 1:
                x = (x * weight.mT).sum(-1, keepdim=True) + bias
            elif weight.shape[-1] < THIN:
                x = torch.bmm(weight.mT, x.mT).mT + bias
            else:
                x = torch.baddbmm(bias, x, weight)
            x = x if i == last else self.activation(layer_norm(x, x.shape[-1:]) if self.norm else x)
        return x


THIN = 64  # columns below which it pays to compute the transpose of a product


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x (K, N, D) times y (K, D, M)."""
    members, inner, columns = y.shape
    if inner == 1:
        return x * y
    if products.suits(x, y):
        return products.multiply(x, y)
    if columns < THIN:
        x, y = y.mT, x.mT
    found = torch.mm(x[0], y[0])[None] if members == 1 else torch.bmm(x, y)
    return found.mT if columns < THIN else found


def _layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (K, N, D) times weight (K, D, M) and bias (K, 1, M) added, in the bias's precision."""
    if weight.shape[-1] == 1:
        return torch.linalg.vecdot(x, weight.mT)[..., None].add_(bias)
    if x.dtype != bias.dtype:
        return _product(x, weight).to(bias.dtype).add_(bias)
    if products.suits(x, weight):
        return products.multiply(x, weight, bias)
    return torch.addmm(bias[0], x[0], weight[0])[None] if len(weight) == 1 else torch.baddbmm(bias, x, weight)


def _through(rounded: bool, x: Tensor, weights: list[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What layers put out, and what each of them reads; leaves `weights` as the factors that they were."""
    hidden, last = [x], len(weights) - 1
    for i in range(last):
        weights[i] = weights[i].to(hidden[i].dtype)
        h = _layer(hidden[i], weights[i], biases[i]).relu_()
        hidden.append(h.bfloat16() if rounded and i + 1 < last else h)
    return _layer(hidden[last], weights[last], biases[last]), hidden


class _Rectified(torch.autograd.Function):
    """A stack with rectified linear units, forwards and backwards in place.

        dL/dh_i = dL/dz_{i+1} W_{i+1}',   dL/dz_i = dL/dh_i [h_i > 0],   dL/dW_i = h_{i-1}' dL/dz_i

    One node of the graph where there would be five a layer, and no memory but that of the hidden layers. What a rounded
    layer reads is kept in bfloat16, and so are its weights and the slopes of what it puts out, while they are factors.
    """

    @staticmethod
    def forward(ctx: Any, rounded: bool, x: Tensor, *parameters: Tensor) -> Tensor:
        count = len(parameters) // 2
        weights = list(parameters[:count])
        put, hidden = _through(rounded, x, weights, parameters[count:])
        ctx.save_for_backward(*hidden, *weights)
        return put

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        count = len(saved) // 2
        hidden, weights, slope = saved[:count], saved[count:], grads[0]
        asked = ctx.needs_input_grad[1:]
        of_weights: list[Tensor | None] = [None] * count
        of_biases: list[Tensor | None] = [None] * count
        for i in range(count - 1, -1, -1):
            factor = slope.to(hidden[i].dtype)
            if asked[1 + i]:
                of_weights[i] = _product(hidden[i].transpose(1, 2), factor).to(slope.dtype)
            if asked[1 + count + i]:
                of_biases[i] = slope.sum(1, keepdim=True)
            if i == 0:
                break
            below = _product(factor, weights[i].transpose(1, 2))
            torch.ops.aten.threshold_backward.grad_input(below, hidden[i], 0, grad_input=below)
            slope = below.to(slope.dtype)
        first = _product(slope, weights[0].transpose(1, 2)) if asked[0] else None
        return None, first, *of_weights, *of_biases
