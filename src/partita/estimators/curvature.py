"""What one step's update would do to the policy, by a model of the last layer alone, by chunks of rows.

For logits z = W h / tau, action a, pi = softmax(z) and v = e_a - pi, the policy gradient of a step is A v (h / tau)^T.
A change dW of the last layer changes the logits by dz = dW h / tau, and to second order

    log pi'(a) - log pi(a) = s - w / 2,   s = v . dz,   w = sum_j pi_j dz_j^2 - (sum_j pi_j dz_j)^2

Nothing here needs gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from partita.core.checks import check_float, check_rank, check_shape

AUTO_CHUNK = 1 << 21  # entries of the largest table held at once when `chunk` is 0


@dataclass(frozen=True)
class LastLayer:
    """What the last layer read and what was chosen, at N steps.

    hidden: (N, D). weight: (V, D). bias: (V,) or None. targets: (N,) int64, the actions. advantage: (N,).
    temperature: a positive number, or (N,) of them.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    advantage: Tensor
    temperature: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_rank("hidden", self.hidden, 2, "(N, D)")
        check_float("hidden", self.hidden)
        check_rank("weight", self.weight, 2, "(V, D)")
        count, width = self.hidden.shape
        if self.weight.shape[1] != width:
            raise ValueError(f"weight: expected (V, D) with D = {width}, got {tuple(self.weight.shape)}")
        check_shape("targets", self.targets, (count,), "(N,)")
        check_shape("advantage", self.advantage, (count,), "(N,)")
        if self.bias is not None:
            check_shape("bias", self.bias, (self.weight.shape[0],), "(V,)")
        if isinstance(self.temperature, Tensor):
            check_shape("temperature", self.temperature, (count,), "(N,)")
        elif not self.temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")

    def __getitem__(self, steps: Tensor) -> LastLayer:
        """The steps chosen by a boolean mask (N,) or an index tensor."""
        tau = self.temperature
        return LastLayer(
            self.hidden[steps], self.weight, self.bias, self.targets[steps], self.advantage[steps],
            tau[steps] if isinstance(tau, Tensor) else tau,
        )  # fmt: skip

    def rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h / tau (n, D), pi (n, V), targets (n,) and advantages (n,) of some steps."""
        tau = self.temperature
        tau = tau[part, None] if isinstance(tau, Tensor) else tau
        hidden, dtype = self.hidden[part], torch.promote_types(self.hidden.dtype, torch.float32)
        probability = (linear(hidden, self.weight, self.bias).to(dtype) / tau).softmax(1)
        return hidden.to(dtype) / tau, probability, self.targets[part], self.advantage[part].to(dtype)


@torch.no_grad()
def gradient_shifts(layer: LastLayer, rate: float, chunk: int = 0) -> tuple[Tensor, Tensor]:
    """s and w of each step if the last layer took a gradient step of size `rate` on that step alone, both (N,).

        dW = rate * A v (h / tau)^T,   s = rate * A |h / tau|^2 |v|^2,   w = (rate * A |h / tau|^2)^2 Var_pi(v)

    chunk: rows at a time; 0 chooses. Raises ValueError on a wrong shape.
    """
    count, vocab = layer.hidden.shape[0], layer.weight.shape[0]
    found = []
    for part in _parts(count, chunk if chunk > 0 else max(16, AUTO_CHUNK // vocab)):
        hidden, pi, targets, advantage = layer.rows(part)
        away = pi.neg().scatter_add_(1, targets[:, None], torch.ones_like(advantage)[:, None])
        size = rate * advantage * hidden.square().sum(1)
        mean = (pi * away).sum(1)
        spread = (pi * away.square()).sum(1) - mean.square()
        found.append((size * away.square().sum(1), size.square() * spread))
    return _joined(found, layer)


@torch.no_grad()
def adam_shifts(
    layer: LastLayer,
    rate: float,
    moments: Mapping[str, Any],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    top: int = 50,
    chunk: int = 0,
) -> tuple[Tensor, Tensor]:
    """s and w of each step if the last layer took an Adam step whose gradient is that of this step alone, both (N,).

        p = b1 m + (1 - b1) g,   q = b2 n + (1 - b2) g^2,   g = A v (h / tau)^T
        dW = rate * (p / (1 - b1^t)) / (sqrt(q / (1 - b2^t)) + eps)

    moments: what `adam_update` keeps, m and n (V, D) and t - 1, before this step (empty: zero). top: only the logits of
    the so many likeliest actions, and of the action taken, are followed; those of a vocabulary no larger than that are
    followed all. chunk: rows at a time; 0 chooses. Raises ValueError on a wrong shape.
    """
    (count, width), vocab = layer.hidden.shape, layer.weight.shape[0]
    kept, (first, second) = min(max(top, 1), vocab), betas
    step = moments.get("step", 0) + 1
    found = []
    for part in _parts(count, chunk if chunk > 0 else max(1, AUTO_CHUNK // (kept * width))):
        hidden, pi, targets, advantage = layer.rows(part)
        ids = _followed(pi, targets, kept)
        pi, taken = pi.gather(1, ids), ids == targets[:, None]
        away = taken.to(pi.dtype) - pi
        gradient = (advantage[:, None] * away)[:, :, None] * hidden[:, None, :]
        p, q = (1 - first) * gradient, (1 - second) * gradient.square()
        if moments:
            p += first * moments["first"][ids]
            q += second * moments["second"][ids]
        change = rate / (1 - first**step) * p / ((q / (1 - second**step)).sqrt_() + eps)
        logits = torch.einsum("nkd,nd->nk", change, hidden)
        mean = (pi * logits).sum(1)
        found.append(((away * logits).sum(1), (pi * logits.square()).sum(1) - mean.square()))
    return _joined(found, layer)


@torch.no_grad()
def adam_update(
    layer: LastLayer, moments: Mapping[str, Any], betas: tuple[float, float], chunk: int = 0
) -> dict[str, Any]:
    """Adam's moments after a step on the mean gradient of all steps of `layer`: {"first", "second": (V, D), "step"}.

        m <- b1 m + (1 - b1) g,   n <- b2 n + (1 - b2) g^2,   g = mean_i A_i v_i (h_i / tau)^T

    Without steps the moments stay as they are. Raises ValueError on a wrong shape.
    """
    count, vocab = layer.hidden.shape[0], layer.weight.shape[0]
    if not count:
        return dict(moments)
    gradient = torch.zeros(
        layer.weight.shape, dtype=torch.promote_types(layer.hidden.dtype, torch.float32), device=layer.hidden.device
    )
    for part in _parts(count, chunk if chunk > 0 else max(16, AUTO_CHUNK // vocab)):
        hidden, pi, targets, advantage = layer.rows(part)
        away = pi.neg_().scatter_add_(1, targets[:, None], torch.ones_like(advantage)[:, None])
        gradient.addmm_((away * advantage[:, None]).T, hidden, alpha=1 / count)
    first, second = betas
    m, n = moments.get("first", 0.0), moments.get("second", 0.0)
    return {
        "first": first * m + (1 - first) * gradient,
        "second": second * n + (1 - second) * gradient.square(),
        "step": moments.get("step", 0) + 1,
    }


def _followed(pi: Tensor, targets: Tensor, kept: int) -> Tensor:
    """The likeliest actions of each row, (n, kept); the one taken stands in for the last where it is missing."""
    ids = pi.topk(kept, dim=1).indices
    missing = ~(ids == targets[:, None]).any(1)
    ids[:, -1] = torch.where(missing, targets, ids[:, -1])
    return ids


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _joined(found: list[tuple[Tensor, Tensor]], layer: LastLayer) -> tuple[Tensor, Tensor]:
    if not found:
        empty = layer.hidden.new_zeros(0, dtype=torch.promote_types(layer.hidden.dtype, torch.float32))
        return empty, empty.clone()
    shift, spread = zip(*found, strict=True)
    return torch.cat(shift), torch.cat(spread)
