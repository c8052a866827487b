"""Proxies of the gold reward: logistic models of a chosen size, fitted to comparisons."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.checks import check_rank
from partita.tasks.preferences.gold import SYMBOLS, Writing, base_writing, read

WIDEST = 4 + 2 * SYMBOLS + SYMBOLS**2


def features(writing: Writing) -> Tensor:
    """What a proxy may look at, (N, `WIDEST`) float64: all of it counts, nothing saturates and no length is best.

    |y|, capitals, repeats, overlap; counts of symbols; the opening symbol; counts of pairs of neighbours.
    """
    few = torch.stack((writing.length, writing.upper, writing.repeats, writing.overlap), 1)
    opening = torch.nn.functional.one_hot(writing.opening, SYMBOLS).double()
    return torch.cat((few, writing.count, opening, writing.pair.flatten(1)), 1)


@functools.cache
def deviations() -> Tensor:
    """The deviation of every feature over the base model's samples, (`WIDEST`,)."""
    return features(base_writing()).std(0)


def chosen(width: int, seed: int) -> Tensor:
    """Which features a proxy of that width sees, (width,) int64: those of a narrower one and some more.

    Drawn without replacement, with chances in proportion to the features' deviations over the base model's samples.
    """
    uniform = torch.rand(WIDEST, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    key = deviations().clamp(min=1e-12).log() - (-uniform.clamp(min=1e-300).log()).log()
    return key.argsort(descending=True)[:width]


@dataclass(frozen=True)
class Proxy:
    """A reward that is linear in some features, of mean 0 and deviation 1 over what the base model writes.

        proxy(x, y) = (w . f(x, y) - shift) / scale

    index: (width,), which features; weight: (width,).
    """

    index: Tensor
    weight: Tensor
    shift: float
    scale: float

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """The proxy's reward of each response, (N,) float64."""
        return self.of(read(prompts, responses))

    def of(self, writing: Writing) -> Tensor:
        """The proxy's reward of responses that have been read, (N,) float64."""
        return (features(writing)[:, self.index] @ self.weight - self.shift) / self.scale


def fit(better: Writing, worse: Writing, width: int, seed: int, ridge: float) -> Proxy:
    """The proxy of that width that explains comparisons best (see `logistic`); features are scaled to deviation 1."""
    index = chosen(width, seed)
    scale = deviations()[index].clamp(min=1e-6)
    difference = (features(better)[:, index] - features(worse)[:, index]) / scale
    weight = logistic(difference, ridge) / scale
    value = features(base_writing())[:, index] @ weight
    return Proxy(index, weight, float(value.mean()), max(float(value.std()), 1e-12))


def logistic(difference: Tensor, ridge: float, tolerance: float = 1e-10) -> Tensor:
    """The Bradley-Terry model that explains comparisons, by Newton's method: w (F,).

        min_w  1/M sum_i log(1 + exp(-w . d_i)) + ridge / 2 |w|^2

    difference: (M, F), features of the preferred response minus those of the other. Converges from anywhere: each step
    is halved until the loss falls. With ridge > 0 there is one minimum.
    """
    check_rank("difference", difference, 2, "(M, F)")
    x = difference.double()
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    eye = torch.eye(x.shape[1], dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-x @ w).mean() + ridge / 2 * w.square().sum()

    for _ in range(100):
        p = (-x @ w).sigmoid()
        gradient = -(x * p[:, None]).mean(0) + ridge * w
        if float(gradient.abs().max()) < tolerance:
            break
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + ridge * eye
        step, size, now = torch.linalg.solve(hessian, gradient), 1.0, loss(w)
        while size > 1e-6 and loss(w - size * step) > now:
            size /= 2
        w = w - size * step
    return w
