"""Returns and advantages along time. Layout (B, T), right-padded; `mask` skips what the policy did not do.

Conventions. `cut` marks the steps after which nothing flows back: terminated, truncated, the last step of a
row. `bootstrap` is V of the true next state where a step is cut without termination, zero elsewhere. Steps
outside `mask` (observation tokens, padding) are no decisions: their rewards, bootstraps and cuts belong to
the decision before them, undiscounted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.checks import check_float, check_shape


def _scan(delta: Tensor, decay: Tensor) -> Tensor:
    """x_t = delta_t + decay_t * x_tp1 along the second axis, from the right."""
    flowing = torch.zeros_like(delta[:, 0])
    rows = []
    steps = zip(delta.T.contiguous().unbind(0), decay.T.contiguous().unbind(0), strict=True)
    for delta_t, decay_t in reversed(list(steps)):
        flowing = torch.addcmul(delta_t, decay_t, flowing)
        rows.append(flowing)
    return torch.stack(rows[::-1], 1)


def _decisions(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Fold every step into the decision before it: slot index (B, T), and the tensors summed by slot."""
    slot = mask.cumsum(1) - 1
    owned = slot >= 0
    slot = slot.clamp(min=0)
    return slot, [torch.zeros_like(x).scatter_add_(1, slot, x * owned) for x in tensors]


def discounted_return(reward: Tensor, cut: Tensor, bootstrap: Tensor, discount: float, mask: Tensor) -> Tensor:
    """Discounted reward-to-go of every decision, (B, T); zero outside `mask`.

    G_t = r_t + discount * (bootstrap_t  if cut_t else  G_tp1)
    """
    value = torch.zeros_like(reward)
    return gae(reward, value, cut, bootstrap, discount, 1.0, mask)


def gae(
    reward: Tensor,
    value: Tensor,
    cut: Tensor,
    bootstrap: Tensor,
    discount: float,
    gae_lambda: float,
    mask: Tensor,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al., 2016, arXiv:1506.02438, eq. 16).

        delta_t = r_t + discount * V_tp1 - V_t
        A_t     = delta_t + discount * gae_lambda * A_tp1

    with V_tp1 replaced by `bootstrap_t` (zero after termination) and A_tp1 by zero where `cut_t`. All (B, T)
    and of one dtype; zero outside `mask`.
    """
    check_float("reward", reward)
    for name, tensor in (("value", value), ("cut", cut), ("bootstrap", bootstrap), ("mask", mask)):
        check_shape(name, tensor, reward)
    keep = (~cut).to(reward.dtype)
    holes = not bool(mask.all())
    if holes:
        slot, (reward, bootstrap, value, stopped) = _decisions(mask, reward, bootstrap, value * mask, 1 - keep)
        keep = (stopped == 0).to(reward.dtype)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
    delta = reward + discount * (following * keep + bootstrap) - value
    advantage = _scan(delta, discount * gae_lambda * keep)
    return advantage.gather(1, slot) * mask if holes else advantage
