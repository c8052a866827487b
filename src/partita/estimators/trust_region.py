"""The largest step that a quadratic model allows: conjugate gradients, products with a Hessian, a line search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from partita.core.checks import check_rank
from partita.core.ranks import averaged

Product = Callable[[Tensor], Tensor]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries of tensors one after another, (N,)."""
    return torch.cat([x.reshape(-1) for x in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `flatten`: pieces of (N,) in the shapes of `like`."""
    check_rank("vector", vector, 1, "(N,)")
    sizes = [x.numel() for x in like]
    if sum(sizes) != len(vector):
        raise ValueError(f"vector: expected (N,) = ({sum(sizes)},), got {tuple(vector.shape)}")
    return [piece.view_as(x) for piece, x in zip(vector.split(sizes), like, strict=True)]


def hessian_product(gradient: Sequence[Tensor], parameters: Sequence[Tensor], damping: float = 0.0) -> Product:
    """v -> (H + damping) v, both (N,), H the Hessian of a scalar by `parameters` and `gradient` its gradient.

    The gradient must have been taken with `create_graph`. Of the divergence from a distribution to itself H is the
    Fisher information.
    """
    flat = flatten(gradient)

    def product(vector: Tensor) -> Tensor:
        with torch.enable_grad():
            columns = torch.autograd.grad(flat @ vector, parameters, retain_graph=True, materialize_grads=True)
        averaged(columns)
        return flatten(columns).add_(vector, alpha=damping)

    return product


@torch.no_grad()
def conjugate_gradient(product: Product, b: Tensor, steps: int = 10, tolerance: float = 1e-10) -> Tensor:
    """x with A x = b, (N,), for a positive semi-definite A given by its products (Hestenes and Stiefel, 1952).

        x <- x + c p,   r <- r - c A p,   c = r.r / p.A p,   p <- r' + (r'.r' / r.r) p

    Starts at 0 and stops after `steps`, or as soon as r.r is at most tolerance * b.b: exact after N steps, but for
    rounding. Where b has a part that A cannot reach, it stops before going astray.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, size = b.clone(), b @ b
    goal = tolerance * float(size)
    for _ in range(steps):
        if float(size) <= goal:
            break
        image = product(p)
        bend = p @ image
        if not float(bend) > 0:
            break
        length = size / bend
        x, r = x + length * p, r - length * image
        size, before = r @ r, size
        p = r + size / before * p
    return x


def trust_region_step(product: Product, gradient: Tensor, max_kl: float, steps: int = 10) -> Tensor:
    """The step down `gradient` that a quadratic model of the divergence, d.A d / 2, limits to `max_kl`; (N,).

        d = -sqrt(2 max_kl / x.A x) x,   A x = gradient

    Zero where the gradient is. Schulman et al. (2015), arXiv:1502.05477, appendix C.
    """
    x = conjugate_gradient(product, gradient, steps)
    bend = float(x @ product(x)) if bool(x.any()) else 0.0
    return -((2 * max_kl / bend) ** 0.5) * x if bend > 0 else torch.zeros_like(x)


def line_search(accepts: Callable[[float], bool], backtracks: int = 10, decay: float = 0.8) -> float:
    """The first of 1, decay, decay^2, ... that is accepted, 0 when none of `backtracks` is."""
    for power in range(backtracks):
        if accepts(share := decay**power):
            return share
    return 0.0
