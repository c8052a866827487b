"""`Pairs`: responses, and which of them is preferred to which."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch


@dataclass(frozen=True)
class Pairs:
    """Comparisons between the rows of a batch.

    batch: (B, T), distinct responses; rows of one `group` answer the same prompt, which is computed once for all.
    first, second: (M,) int64, the rows compared. prefer: (M,), probability that the first is preferred (a plain label:
    1). margin: (M,), by how much, where the data say so. label: (B,), 1 for a desirable response, 0 for an undesirable
    one, nan where nothing is known. ref: (B,), log ref(y | x), the reference's log-probability of the whole response.
    drift: scalar, the mean of log(pi(y' | x) / ref(y' | x)) over responses y' to other prompts, for parts that need it.
    """

    batch: Batch
    first: Tensor
    second: Tensor
    prefer: Tensor
    margin: Tensor | None = None
    label: Tensor | None = None
    ref: Tensor | None = None
    drift: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.batch)
        for name in ("first", "second", "prefer", "margin"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != tuple(self.first.shape[:1]):
                raise ValueError(f"{name}: expected (M,) = ({len(self.first)},), got {tuple(value.shape)}")
        for name in ("label", "ref"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (rows,):
                raise ValueError(f"{name}: expected (B,) = ({rows},), got {tuple(value.shape)}")
        for name in ("first", "second"):
            index = getattr(self, name)
            if len(index) and not (int(index.min()) >= 0 and int(index.max()) < rows):
                found = f"{int(index.min())} to {int(index.max())}"
                raise ValueError(f"{name}: expected rows from 0 to {rows - 1}, got {found}")

    def __len__(self) -> int:
        return len(self.first)

    def but(self, **changes: Any) -> Pairs:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def need(self, name: str) -> Tensor:
        """The field `name`, or a ValueError that says what is missing."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"pairs.{name} is empty: the part that reads it must say so in `needs`")
        return value

    def rows(self, keep: Tensor) -> Pairs:
        """The responses where `keep` (B,) bool is true, and the comparisons among them."""
        place = keep.cumsum(0) - 1
        held = keep[self.first] & keep[self.second]

        def some(value: Tensor | None, chosen: Tensor) -> Tensor | None:
            return None if value is None else value[chosen]

        return Pairs(
            self.batch[keep], place[self.first[held]], place[self.second[held]], self.prefer[held],
            some(self.margin, held), some(self.label, keep), some(self.ref, keep), self.drift,
        )  # fmt: skip

    def labelled(self) -> Pairs:
        """With labels; where there are none, those of the comparisons: whoever wins more than half is desirable."""
        if self.label is not None:
            return self
        wins = torch.zeros(len(self.batch), dtype=self.prefer.dtype, device=self.prefer.device)
        met = wins.index_add(0, self.first, torch.ones_like(self.prefer)).index_add(
            0, self.second, torch.ones_like(self.prefer)
        )
        wins = wins.index_add(0, self.first, self.prefer).index_add(0, self.second, 1 - self.prefer)
        return self.but(label=torch.where(met > 0, (wins > met / 2).to(wins.dtype), torch.nan))

    def only_compared(self) -> Pairs:
        """Without the responses that no comparison and no label speaks of."""
        keep = torch.zeros(len(self.batch), dtype=torch.bool, device=self.first.device)
        keep[self.first] = True
        keep[self.second] = True
        if self.label is not None:
            keep |= ~self.label.isnan()
        return self if bool(keep.all()) else self.rows(keep)
