"""Random comparisons, what a policy says of the responses, and our side of every loss on them."""

from types import SimpleNamespace

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.pairs import Pairs
from partita.loops.preference import Preference, losses

M, T = 6, 9


def drawn(seed: int, alike: bool = False) -> tuple[Pairs, Tensor]:
    """Six comparisons in float64, and the log-probabilities of the policy as it is now, (2M, T).

    Rows 0 to M - 1 are the preferred responses, the rest the others in the same order; every second comparison is
    written the other way round, with `prefer` 0. alike: all responses have the same length.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    lengths = torch.full((2 * M,), T) if alike else torch.randint(2, T + 1, (2 * M,), generator=g)
    lengths[0] = T
    mask = torch.arange(T) < lengths[:, None]
    ref, logp = (-normal(2 * M, T).abs() - 0.1 for _ in range(2))
    better, turned = torch.arange(M), torch.arange(M) % 2 == 1
    pairs = Pairs(
        Batch(mask=mask, group=torch.cat((better, better)), outcome=normal(2 * M)),
        torch.where(turned, better + M, better), torch.where(turned, better, better + M), (~turned).double(),
        margin=normal(M).abs(), ref=(ref * mask).sum(1),
    )  # fmt: skip
    return pairs, logp * mask


def ours(recipe: Preference, pairs: Pairs, logp: Tensor, value: bool = False) -> tuple[Tensor, Tensor]:
    """Loss of a recipe, and its gradient by log-probabilities (2M, T), or by values if `value`, as the loop has it."""
    leaf = logp.clone().requires_grad_()
    out = Outputs(logp, value=leaf) if value else Outputs(leaf)
    policy = SimpleNamespace(evaluate=lambda batch: out)
    loss, _ = losses(recipe, policy, pairs, pairs)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]
