"""`Adam` on named parameters, with state that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from partita.core.ranks import anywhere, averaged
from partita.core.shards import is_shard, norm, own, placed


class Adam:
    """Adam with decoupled weight decay (fused) and gradient-norm clipping.

    Calls the kernel of torch's AdamW with lists of its own: `torch.optim.AdamW` imports the compiler when it is made,
    about a second, and gathers its state anew at every step. rate: the learning rate of the next step. kernel: False
    spells the step out in operations that a compiler joins with others (`core/program`). Of parameters that are shards
    it steps this rank's part, and holds that part's moments alone.
    """

    kernel = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        lr: float,
        max_grad_norm: float | None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters, self.max_grad_norm = dict(parameters), max_grad_norm
        self.cut = any(map(is_shard, self.parameters.values()))
        self._rate = torch.tensor(lr, dtype=torch.float64)
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self.moments: dict[str, dict[str, Tensor]] = {}  # by parameter name, made at its first gradient

    @property
    def rate(self) -> float:
        return float(self._rate)

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate.fill_(value)

    def tensors(self) -> list[Tensor]:
        """Everything that `move` reads or changes, beside gradients; makes what the first step would make."""
        self._ready(self.parameters)
        moments = [x for held in self.moments.values() for x in held.values()]
        return [*self.parameters.values(), *moments, self._rate]

    @torch.no_grad()
    def apply(self) -> Tensor:
        """Clip and step on the gradients that have been accumulated; returns their norm, scalar.

        Steps only when the norm is finite: the caller checks what it got.
        """
        have = anywhere([p.grad is not None for p in self.parameters.values()])
        held = [item for item, has in zip(self.parameters.items(), have, strict=True) if has]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in held]
        averaged(gradients)
        if not self.kernel:
            length = _spelt_norm(gradients)
            limit = self.max_grad_norm
            scale = torch.ones(()) if limit is None else (limit / (length + 1e-6)).clamp(max=1)
            self._step(held, [torch.where(length.isfinite(), g * scale, 0.0) for g in gradients])
        elif bool((length := norm(gradients)).isfinite()):
            if self.max_grad_norm is not None and float(length) > self.max_grad_norm:
                torch._foreach_mul_([own(x) for x in gradients], self.max_grad_norm / (float(length) + 1e-6))
            self._step(held, gradients)
        for _, parameter in held:
            parameter.grad = None
        return length

    @torch.no_grad()
    def move(self, names: Sequence[str], gradients: Sequence[Tensor]) -> None:
        """Step the parameters `names` on gradients given beside them, clipped where a limit is set; nothing is checked.

        For loops of many small updates, which look whether all is finite once in a while.
        """
        listed = list(gradients)
        averaged(listed)
        if self.max_grad_norm is not None:
            length = norm(listed) if self.kernel else _spelt_norm(listed)
            scale = (self.max_grad_norm / (length + 1e-6)).clamp(max=1)
            torch._foreach_mul_([own(x) for x in listed], scale)
        self._step([(name, self.parameters[name]) for name in names], listed)

    def _ready(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.moments:
                parameter = self.parameters[name].detach()
                self.moments[name] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def _spelt(
        self, held: Sequence[tuple[str, Parameter]], gradients: Sequence[Tensor], moments: Sequence[dict[str, Tensor]]
    ) -> None:
        """The step in operations that a compiler joins. What depends on the count alone is one tensor for everything:
        it is then found once, not again beside every few numbers of a parameter."""
        count = torch.stack([moment["step"].add_(1) for moment in moments]).double()
        first, second = (1 - (count * (math.log(beta) if beta else -math.inf)).exp() for beta in self.betas)
        pace, width = (self._rate / first).float(), second.rsqrt().float()
        for i, ((_, parameter), gradient, moment) in enumerate(zip(held, gradients, moments, strict=True)):
            mean = moment["exp_avg"].lerp_(gradient, 1 - self.betas[0])
            square = moment["exp_avg_sq"].lerp_(gradient * gradient, 1 - self.betas[1])
            kept = parameter if self.weight_decay == 0 else parameter * (1 - self._rate * self.weight_decay)
            parameter.copy_(kept - pace[i] * mean / (square.sqrt() * width[i] + self.eps))

    def _step(self, held: list[tuple[str, Parameter]], gradients: list[Tensor]) -> None:
        self._ready(name for name, _ in held)
        moments = [self.moments[name] for name, _ in held]
        if not self.kernel:
            self._spelt(held, gradients, moments)
            return
        steps = [m["step"] for m in moments]
        torch._foreach_add_(steps, 1)
        tables: list[list[Tensor]] = [[p for _, p in held], gradients]
        tables += [[m[name] for m in moments] for name in ("exp_avg", "exp_avg_sq")]
        parameters, gradients, first, second = [[own(x) for x in t] for t in tables] if self.cut else tables
        torch._fused_adamw_(
            parameters,
            [gradient.contiguous() for gradient in gradients],  # the kernel reads memory in order
            first,
            second,
            [],
            steps,
            lr=self.rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts by parameter name."""
        return dict(self.moments)

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.moments = {}
        for name, moments in state.items():
            mine = self.parameters[name]
            self.moments[name] = {
                k: placed(v, mine).clone() if v.dim() else v.to(mine.device, copy=True) for k, v in moments.items()
            }


def _spelt_norm(tensors: Sequence[Tensor]) -> Tensor:
    """`norm` in operations that a compiler joins with others; scalar."""
    return torch.stack([x.square().sum() for x in tensors]).sum().sqrt()
