"""Importance ratios and the divergence estimates made of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from partita.core.checks import check_shape

KLEstimator = Literal["k1", "k2", "k3"]


def log_ratio(logp: Tensor, behaviour_logp: Tensor, clamp: float | None = None) -> Tensor:
    """log pi(a|s) - log mu(a|s), (B, T), optionally clamped to [-clamp, clamp]."""
    check_shape("behaviour_logp", behaviour_logp, logp)
    out = logp - behaviour_logp
    return out if clamp is None else out.clamp(-clamp, clamp)


def sequence_log_ratio(log_ratios: Tensor, mask: Tensor) -> Tensor:
    """Length-normalised log-ratio of each trajectory, (B, 1) (GSPO, arXiv:2507.18071, eq. 7).

    log s_i = (1 / |y_i|) * sum_t log w_it
    """
    check_shape("mask", mask, log_ratios)
    return (log_ratios * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Per-step estimates of KL(pi || ref) from samples of pi, (B, T) (Schulman, "Approximating KL divergence", 2020).

        k1 = -log r,   k2 = (log r)^2 / 2,   k3 = r - 1 - log r,    r = ref(a|s) / pi(a|s)

    k1 and k3 are unbiased in value; as a loss differentiated through `logp`, k2 has the gradient of the
    KL on-policy, k1's has mean zero and k3's is biased.
    """
    check_shape("ref_logp", ref_logp, logp)
    log_r = ref_logp - logp
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    if estimator == "k3":
        return torch.expm1(log_r) - log_r
    raise ValueError(f"estimator: expected k1, k2 or k3, got {estimator!r}")
