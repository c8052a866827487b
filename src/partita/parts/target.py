"""The slot `target`: how do the lagging networks follow those that learn?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from partita.core.limits import check_count, check_share
from partita.core.part import Domain, Part


class Target(Part):
    """Moves lagging parameters towards those that learn, after an update."""

    slot: ClassVar[str] = "target"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    every: int = 1

    def __call__(self, lagged: Sequence[Tensor], learnt: Sequence[Tensor], count: int) -> None:
        """Move `lagged` in place, after update number `count` (from 1)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Polyak(Target):
    """A moving average.

        lagged <- (1 - tau) * lagged + tau * learnt

    every `every` updates (Lillicrap et al., 2015, arXiv:1509.02971).
    """

    tau: float = 0.005
    every: int = 1

    def __post_init__(self) -> None:
        check_share("target.tau", self.tau, above=True)
        check_count("target.every", self.every)

    @torch.no_grad()
    def __call__(self, lagged: Sequence[Tensor], learnt: Sequence[Tensor], count: int) -> None:
        if count % self.every == 0 and lagged:
            torch._foreach_lerp_(list(lagged), list(learnt), self.tau)


@dataclass(frozen=True)
class Copy(Target):
    """A copy now and then.

        lagged <- learnt

    every `every` updates (Mnih et al., 2015).
    """

    every: int = 250

    def __post_init__(self) -> None:
        check_count("target.every", self.every)

    @torch.no_grad()
    def __call__(self, lagged: Sequence[Tensor], learnt: Sequence[Tensor], count: int) -> None:
        if count % self.every == 0 and lagged:
            torch._foreach_copy_(list(lagged), list(learnt))
