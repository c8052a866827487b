"""A random batch, what a policy says of it, and our side of every comparison."""

from types import SimpleNamespace

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.loops.descent import losses
from partita.loops.on_policy import OnPolicy

B, T, GROUPS = 8, 9, 4


def drawn(seed: int, holes: bool = True, per_step: bool = False, far: float = 0.3) -> tuple[Batch, Tensor]:
    """A batch of four pairs of responses in float64, and the log-probabilities of the policy as it is now, (B, T).

    Some steps are the world's where `holes`; advantages are the trajectory's unless `per_step`; `far`: how far the
    policy is from the one that sampled, as the deviation of the log-ratio of a step.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    lengths = torch.randint(3, T + 1, (B,), generator=g)
    lengths[0] = T
    last = torch.arange(T) == lengths[:, None] - 1
    mask = torch.arange(T) < lengths[:, None]
    if holes:
        mask &= (torch.rand(B, T, generator=g) < 0.7) | last
    old, now = -normal(B, T).abs() - 0.1, far * normal(B, T)
    batch = Batch(
        mask=mask, logp=old * mask, reward=normal(B, T) * last, terminated=last, value=normal(B, T) * mask,
        ref_logp=(old + 0.3 * normal(B, T)) * mask, entropy=torch.rand(B, T, generator=g).double() * mask,
        advantage=(normal(B, T) if per_step else normal(B, 1)) * mask, group=torch.arange(B) // (B // GROUPS),
    )  # fmt: skip
    return batch, (old + now) * mask


def shortened(batch: Batch, row: int = 1) -> Batch:
    """The batch with a trajectory of which no step counts."""
    return batch.but(mask=batch.mask & (torch.arange(len(batch)) != row)[:, None])


def ours(recipe: OnPolicy, batch: Batch, logp: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of a recipe, and its gradient by log-probabilities (B, T), as the loop computes it."""
    leaf = logp.clone().requires_grad_()
    policy = SimpleNamespace(evaluate=lambda batch, entropy: Outputs(leaf))
    batch = batch.but(weight=recipe.focus(batch))
    loss, _ = losses(recipe, policy, batch, recipe.aggregate(batch), 1.0, watch=False)  # type: ignore[arg-type]
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def agree(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Losses and gradients are the same to 1e-6, and not both nothing."""
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype == torch.float64 and a.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def differ(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Gradients are apart by more than a hundred times what `agree` allows."""
    assert (mine[1] - theirs[1]).abs().max() > 1e-4
