"""The slot `aggregate`: losses per step to one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.part import Part


class Aggregate(Part):
    """Weights of steps, (B, T): the loss is sum(weights * loss).

    Weights are made of a whole minibatch and split with it, so that micro-batches add up to the same loss.
    """

    slot: ClassVar[str] = "aggregate"

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


def _float(mask: Tensor) -> Tensor:
    return mask.to(torch.get_default_dtype())


@dataclass(frozen=True)
class TokenMean(Aggregate):
    """Every step counts the same (DAPO, arXiv:2503.14476, eq. 8; PPO in control).

        weight_it = 1 / sum_j |y_j|

    |y_j|: steps on which the policy acted in trajectory j.
    """

    def __call__(self, batch: Batch) -> Tensor:
        return _float(batch.mask) / batch.mask.sum().clamp(min=1)


@dataclass(frozen=True)
class SequenceMean(Aggregate):
    """Every trajectory counts the same, its steps share alike (GRPO, arXiv:2402.03300, eq. 3).

        weight_it = 1 / (B |y_i|)

    |y_i|: steps on which the policy acted in trajectory i.
    """

    unit = "trajectory"

    def __call__(self, batch: Batch) -> Tensor:
        return _float(batch.mask) / (len(batch) * batch.lengths.clamp(min=1)[:, None])


@dataclass(frozen=True)
class SequenceSum(Aggregate):
    """Steps are summed within a trajectory and trajectories averaged: the policy gradient of the return.

        weight_it = 1 / B

    B: trajectories of the minibatch.
    """

    unit = "trajectory"

    def __call__(self, batch: Batch) -> Tensor:
        return _float(batch.mask) / len(batch)


@dataclass(frozen=True)
class FixedLength(Aggregate):
    """Sums divided by a constant, so that length does not change a step's weight (Dr. GRPO, arXiv:2503.20783).

        weight_it = 1 / (B L)

    length: L in tokens. None: the longest response that the task allows (its horizon in control), as TRL does; where no
    task has settled it, the padded width of the batch, as verl does without `loss_scale_factor`.
    """

    unit = "trajectory"
    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise UserError(f"aggregate.length: expected a positive number of tokens, or None, got {self.length}")

    def settle(self, task: Any) -> FixedLength:
        longest = task.horizon if task.domain == "control" else task.max_tokens * getattr(task, "max_turns", 1)
        return self if self.length is not None else self.but(length=longest)

    def __call__(self, batch: Batch) -> Tensor:
        return _float(batch.mask) / (len(batch) * (self.length or batch.mask.shape[1]))
