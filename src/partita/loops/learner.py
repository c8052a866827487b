"""The optimiser of a policy: gradient, clipping, schedule, and the guard against numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from partita.core.policy import Policy

Schedule = Literal["constant", "linear"]


class Learner:
    """Adam with decoupled weight decay (fused), gradient-norm clipping and a learning-rate schedule."""

    def __init__(
        self,
        policy: Policy,
        lr: float,
        schedule: Schedule,
        warmup: int,
        total: int,
        max_grad_norm: float | None,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.names = list(policy.trainable())
        self.parameters = list(policy.trainable().values())
        self.lr, self.schedule, self.warmup, self.total = lr, schedule, warmup, total
        self.max_grad_norm = max_grad_norm
        self.adam = torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    def begin(self, step: int) -> float:
        """Set the learning rate of training step `step` (from 1) and return it."""
        rate = self.lr
        if self.schedule == "linear":
            rate *= 1 - (step - 1) / self.total
        if self.warmup:
            rate *= min(1.0, step / self.warmup)
        for group in self.adam.param_groups:
            group["lr"] = rate
        return rate

    def apply(self) -> Tensor:
        """Clip and step on the gradients that have been accumulated; returns their norm, scalar.

        Steps only when the norm is finite: the caller checks what it got.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if bool(norm.isfinite()):
            if self.max_grad_norm is not None and float(norm) > self.max_grad_norm:
                torch._foreach_mul_(gradients, self.max_grad_norm / (float(norm) + 1e-6))
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts by parameter name."""
        return {n: self.adam.state[p] for n, p in zip(self.names, self.parameters, strict=True) if p in self.adam.state}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if name in state:
                self.adam.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in state[name].items()}
