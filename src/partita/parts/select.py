"""The slot `select`: which trajectories enter the update?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.limits import check_count
from partita.core.part import Part
from partita.estimators.groups import degenerate


class Select(Part):
    """Chooses trajectories, (B,) bool. `rounds` > 1 lets the loop sample again until the batch is full."""

    slot: ClassVar[str] = "select"
    rounds: int = 1

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class All(Select):
    """Every trajectory."""

    def __call__(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch), dtype=torch.bool, device=batch.mask.device)


@dataclass(frozen=True)
class DropDegenerate(Select):
    """Groups in which all returns are equal carry no signal and are dropped (DAPO, arXiv:2503.14476, eq. 11).

        keep the group iff 0 < |{i : solved}| < G,  for binary rewards; in general iff returns differ

    rounds: how often in all the loop may sample to fill the batch again (1: never, smaller batches instead).
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        check_count("select.rounds", self.rounds)

    def __call__(self, batch: Batch) -> Tensor:
        return ~degenerate(batch.need("reward").sum(1), batch.need("group"))
