"""`Mlp`, a multilayer perceptron, and several of them side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from partita.policies.activations import ACTIVATIONS

THIN, MANY = 8, 512  # inputs below and rows above which weights' gradients are found faster as those of their transpose


def linear_layer(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Mlp(nn.ModuleList):
    """Linear layers with an activation between them; orthogonal weights, `gain` on the last layer."""

    def __init__(self, sizes: list[int], gain: float, activation: str, generator: torch.Generator) -> None:
        gains = [math.sqrt(2)] * (len(sizes) - 2) + [gain]
        super().__init__(linear_layer(a, b, g, generator) for a, b, g in zip(sizes[:-1], sizes[1:], gains, strict=True))
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        # Straight to the operators: a module call costs as much as one of these layers does.
        lead, last = x.shape[:-1], len(self) - 1
        x = x.reshape(-1, x.shape[-1])
        for i, layer in enumerate(cast(Iterable[nn.Linear], self)):
            if layer.in_features < THIN and len(x) >= MANY and torch.is_grad_enabled():
                x = torch.addmm(layer.bias, x, layer.weight.t().contiguous())
            else:
                x = linear(x, layer.weight, layer.bias)
            if i < last:
                x = self.activation(x)
        return x.view(*lead, x.shape[-1])


def together(networks: Sequence[Mlp], x: Tensor) -> list[Tensor]:
    """What each network puts out for the same inputs (..., D); layer i of all of them is one product.

    Their hidden layers must be alike. Of two networks each of two cores has one, and need not see the other's layers.
    """
    lead = x.shape[:-1]
    x = x.reshape(-1, x.shape[-1]).expand(len(networks), -1, -1)
    *hidden, last = zip(*cast(Sequence[Sequence[nn.Linear]], networks), strict=True)
    for layers in hidden:
        weight, bias = torch.stack([n.weight.t() for n in layers]), torch.stack([n.bias for n in layers])
        x = networks[0].activation(torch.baddbmm(bias[:, None], x, weight))
    ends = [linear(h, layer.weight, layer.bias) for h, layer in zip(x, last, strict=True)]
    return [end.view(*lead, end.shape[-1]) for end in ends]
