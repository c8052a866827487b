"""Log-probabilities and entropies of tokens straight from hidden states, by chunks of rows.

The (N, V) table of logits of a language model is by far the largest tensor of a policy-gradient step.
Here it never enters the graph: the forward pass keeps two numbers a row, the backward pass makes each
chunk of logits again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from partita.core.checks import check_float, check_rank, check_shape

AUTO_CHUNK = 1 << 20  # logits held at once when `chunk` is 0: 4 MiB in float32, the fastest measured


def gather_logp_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    chunk: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of target tokens, and entropies, under a tempered softmax over hidden states.

    With z = (W h + b) / tau, at most (chunk, V) of it at a time:

        log pi(y) = z_y - logsumexp_j z_j
        H = logsumexp_j z_j - sum_j pi_j z_j
        d log pi(y) / d z_j = 1[j = y] - pi_j
        d H / d z_j = -pi_j (log pi_j + H)

    hidden: (N, D). weight: (V, D). bias: (V,) or None. targets: (N,) int64. temperature: a positive number, or
    (N,) of them (no gradient flows to it). entropy: whether H is wanted. chunk: rows at a time; 0 chooses.
    targets may be (N, K): several tokens for each row, whose log-probabilities come back as (N, K).
    Returns two (N,) tensors in float32 (float64 for float64 inputs), the second None without `entropy`.
    Products run in the dtype of the inputs; softmax and sums over chunks in the dtype of the result.
    Raises ValueError on a wrong shape or dtype. Differentiable once.
    """
    check_rank("hidden", hidden, 2, "(N, D)")
    check_float("hidden", hidden)
    check_rank("weight", weight, 2, "(V, D)")
    count, width = hidden.shape
    if weight.shape[1] != width:
        raise ValueError(f"weight: expected (V, D) with D = {width}, got {tuple(weight.shape)}")
    check_shape("targets", targets, (count, *targets.shape[1:2]), "(N,) or (N, K)")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],), "(V,)")
    tau = None
    if isinstance(temperature, Tensor):
        check_shape("temperature", temperature, (count,), "(N,)")
        tau = temperature.detach()[:, None]
    elif temperature <= 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    elif temperature != 1.0:
        tau = torch.tensor(float(temperature), dtype=torch.float64)  # zero-dimensional: does not promote
    rows = chunk if chunk > 0 else max(16, AUTO_CHUNK // weight.shape[0])
    logp, ent = _Gather.apply(hidden, weight, bias, targets, tau, entropy, rows)
    return logp, (ent if entropy else None)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, tau: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(n, V) tempered logits in `dtype`; a fresh tensor that the caller may overwrite."""
    out = torch.nn.functional.linear(hidden, weight, bias).to(dtype)
    return out if tau is None else out.div_(tau)


def _cut(tau: Tensor | None, part: slice) -> Tensor | None:
    return tau[part] if tau is not None and tau.dim() else tau


class _Gather(torch.autograd.Function):
    """`gather_logp_entropy` with its own backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        tau: Tensor | None,
        entropy: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        count = hidden.shape[0]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logp = hidden.new_empty(targets.shape, dtype=dtype)
        total = logp.new_empty(count)
        ent = torch.empty_like(total) if entropy else logp.new_empty(0)
        targets = targets if targets.dim() == 2 else targets[:, None]
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            z = _logits(hidden[part], weight, bias, _cut(tau, part), dtype)
            chosen = z.gather(1, targets[part])
            top = z.amax(1)
            if entropy:
                shifted = z.sub_(top[:, None])
                mass = shifted.exp()
                norm = mass.sum(1)
                ent[part] = norm.log() - torch.linalg.vecdot(mass, shifted) / norm
                lse = norm.log().add_(top)
            else:
                lse = z.sub_(top[:, None]).exp_().sum(1).log_().add_(top)
            total[part] = lse
            logp.view(targets.shape)[part] = chosen - lse[:, None]
        ctx.save_for_backward(hidden, weight, bias, targets, tau, total, ent)
        ctx.entropy, ctx.rows = entropy, rows
        return logp, ent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_ent: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, tau, total, ent = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype = total.dtype
        to_hidden = torch.empty_like(hidden) if need_hidden else None
        to_weight = torch.zeros_like(weight, dtype=dtype) if need_weight else None
        to_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and need_bias else None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, min(start + ctx.rows, hidden.shape[0]))
            part_tau = _cut(tau, part)
            z = _logits(hidden[part], weight, bias, part_tau, dtype).sub_(total[part, None])  # log pi
            each = grad_logp.reshape(targets.shape)[part]
            g = each.sum(1, keepdim=True)
            if ctx.entropy:
                e = grad_ent[part, None]
                probability = z.exp()
                # -pi (g + e (log pi + H))
                z.add_(ent[part, None]).mul_(e).add_(g).mul_(probability).neg_()
            else:
                z.exp_().mul_(-g)
            z.scatter_add_(1, targets[part], each.to(dtype))
            if part_tau is not None:
                z.div_(part_tau)
            if to_bias is not None:
                to_bias += z.sum(0)
            z = z.to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(z, weight, out=to_hidden[part])
            if to_weight is not None:
                if to_weight.dtype == z.dtype:
                    to_weight.addmm_(z.T, hidden[part])
                else:
                    to_weight += z.T @ hidden[part]
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None or bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )
