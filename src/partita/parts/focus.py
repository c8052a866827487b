"""The slot `focus`: which steps count, and how much?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from partita.core.batch import Batch
from partita.core.part import Part


class Focus(Part):
    """Weights of steps, (B, T), multiplied into the objective (not into the regularisers)."""

    slot: ClassVar[str] = "focus"

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class AllSteps(Focus):
    """Every step on which the policy acted, with weight one."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask.to(batch.need("advantage").dtype)
