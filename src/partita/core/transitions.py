"""`Transitions`: what the replay loop learns from, steps of episodes without their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """N steps (s, a, r, s'), rows in any order.

    obs, next_obs: (N, D) float32. action: (N,) int64, or (N, A) float32 scaled to [-1, 1] within the bounds of the
    task. reward: (N,), the sum of discounted rewards until next_obs where that is several steps away. discount: (N,),
    what the value of next_obs counts for: the discount to the power of those steps, and 0 where the episode terminated.
    weight: (N,), of each step in every loss (None: all 1). index: (N,) int64, rows of the store. source: (N,) int64, 0
    for steps of this run, above it whoever recorded them. extra: other columns of the store, (N, ...).
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor
    weight: Tensor | None = None
    index: Tensor | None = None
    source: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.reward.shape[0]

    def but(self, **changes: Any) -> Transitions:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def need(self, name: str) -> Tensor:
        """The field `name`, or a ValueError that says what is missing."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"transitions.{name} is empty: the part `replay` does not fill it")
        return value

    def columns(self) -> dict[str, Tensor]:
        """Everything that is there, by name."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {name: value for name, value in (held | dict(self.extra)).items() if value is not None}

    def over(self, columns: Mapping[str, Tensor]) -> Transitions:
        """The same columns with other values."""
        named = {f.name: columns[f.name] for f in fields(self) if f.name in columns}
        return replace(self, **named, extra={name: columns[name] for name in self.extra})

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        """The steps chosen by a slice, a boolean mask (N,) or an index tensor."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        chosen = {name: value[rows] for name, value in held.items() if value is not None}
        return replace(self, **chosen, extra={name: value[rows] for name, value in self.extra.items()})

    def split(self, parts: int) -> list[Transitions]:
        """As many batches of equal length, one after the other; views."""
        columns = {name: column.unflatten(0, (parts, -1)).unbind(0) for name, column in self.columns().items()}
        return [self.over({name: each[i] for name, each in columns.items()}) for i in range(parts)]

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean over steps of values (..., N): sum_i w_i x_i / N, scalar for (N,)."""
        return (values if self.weight is None else values * self.weight).mean(-1)
