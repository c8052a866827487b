"""The slot `pairs`: what is compared, in which order?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.core.part import Part


class Compare(Part):
    """Chooses comparisons among responses. `prefer` (B, B) holds the judge's probabilities within groups, or is None
    where nobody judges but the data."""

    slot: ClassVar[str] = "pairs"
    loop: ClassVar[str] = "preference"
    domains = ("language",)
    judges: ClassVar[bool] = True  # whether it asks for the judge's probabilities

    def __call__(self, pairs: Pairs, prefer: Tensor | None, generator: torch.Generator) -> Pairs:
        raise NotImplementedError


@dataclass(frozen=True)
class Labelled(Compare):
    """The comparisons that the data hold, as they are."""

    judges = False

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if recipe.resample.samples:
            return "pairs labelled takes the comparisons of the data, and responses are sampled; use --pairs best_worst"
        return None

    def __call__(self, pairs: Pairs, prefer: Tensor | None, generator: torch.Generator) -> Pairs:
        return pairs


@dataclass(frozen=True)
class BestWorst(Compare):
    """Of every prompt, the response that wins most often against the one that wins least often.

        w_i = mean_j P(y_i beats y_j),    first = argmax w,  second = argmin w

    With a score behind the preferences these are the best and the worst. Prompts whose responses all win alike are left
    out. soft: keep the judge's probability as the label rather than 1.
    """

    soft: bool = False

    def __call__(self, pairs: Pairs, prefer: Tensor | None, generator: torch.Generator) -> Pairs:
        assert prefer is not None
        group = pairs.batch.need("group")
        same = (group[:, None] == group[None, :]).double()
        wins = (prefer * same).sum(1) / same.sum(1)
        first, second = [], []
        for name in group.unique().tolist():
            rows = (group == name).nonzero()[:, 0]
            best, worst = rows[wins[rows].argmax()], rows[wins[rows].argmin()]
            if wins[best] > wins[worst]:
                first.append(int(best))
                second.append(int(worst))
        a, b = (torch.tensor(x, dtype=torch.int64, device=group.device) for x in (first, second))
        label = prefer[a, b] if self.soft else torch.ones(len(a), dtype=prefer.dtype, device=group.device)
        return pairs.but(first=a, second=b, prefer=label.to(torch.float32), margin=None)


@dataclass(frozen=True)
class EveryPair(Compare):
    """Every two responses of a prompt, with the judge's probability, or a label drawn from it.

        P(label = 1) = P(y_i beats y_j),  i < j

    labels: "soft" keeps the probability, "drawn" draws 0 or 1.
    """

    labels: Literal["soft", "drawn"] = "drawn"

    def __post_init__(self) -> None:
        if self.labels not in ("soft", "drawn"):
            raise UserError(f"pairs.labels: expected soft or drawn, got {self.labels!r}")

    def __call__(self, pairs: Pairs, prefer: Tensor | None, generator: torch.Generator) -> Pairs:
        assert prefer is not None
        group = pairs.batch.need("group")
        a, b = (
            torch.ones_like(prefer, dtype=torch.bool).triu(1).logical_and(group[:, None] == group).nonzero().unbind(1)
        )
        label = prefer[a, b]
        if self.labels == "drawn":
            label = (torch.rand(len(a), generator=generator, dtype=torch.float64).to(label) < label).to(label)
        return pairs.but(first=a, second=b, prefer=label.to(torch.float32), margin=None)
