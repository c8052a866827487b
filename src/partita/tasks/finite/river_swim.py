"""RiverSwim: swimming up against a current pays, after many tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partita.tasks.control._checks import check_between, check_positive, refuse
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular

KINDS = ("psrl", "original")


@dataclass(frozen=True)
class RiverSwim(Tabular):
    """A chain of states in a river; action 0 swims left with the current, which always goes, 1 right against it.

    kind "psrl", as in the code of PSRL and UCRL: right is +1 by 0.35, stay 0.6, -1 by 0.05 (at the left end +1 by 0.6,
    stay 0.4; at the right end stay 0.6, -1 by 0.4); pays 0.005 for left at the left end and 1 for right at the right
    end; begins at the left end. "original" (Strehl and Littman, 2008): +1 by 0.3, stay 0.6, -1 by 0.1 (left end +1 by
    0.3, stay 0.7; right end stay 0.3, -1 by 0.7), pays 5 and 10,000, begins in the second or third state.
    """

    length: int = 6
    kind: Literal["psrl", "original"] = "psrl"
    discount: float = 0.95
    max_steps: int = 20

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_between(self, "discount", 0.0, 1.0)
        if self.kind not in KINDS:
            raise refuse(self, "kind", self.kind, f"choose {' or '.join(KINDS)}")
        if self.length < 3:
            raise refuse(self, "length", self.length, "give 3 states or more")

    @property
    def horizon(self) -> int:
        return self.max_steps

    def finite(self) -> FiniteMDP:
        psrl, last = self.kind == "psrl", self.length - 1
        up, back, first, stay_last = (0.35, 0.05, 0.6, 0.6) if psrl else (0.3, 0.1, 0.3, 0.3)
        outcomes = [(s, 0, max(s - 1, 0), 1.0, (0.005 if psrl else 5.0) if s == 0 else 0.0) for s in range(self.length)]
        outcomes += [(0, 1, 1, first, 0.0), (0, 1, 0, 1 - first, 0.0)]
        for s in range(1, last):
            outcomes += [(s, 1, s + 1, up, 0.0), (s, 1, s, 0.6, 0.0), (s, 1, s - 1, back, 0.0)]
        paid = 1.0 if psrl else 10_000.0
        outcomes += [(last, 1, last, stay_last, paid), (last, 1, last - 1, 1 - stay_last, paid)]
        start = [0.0] * self.length
        for s in (0,) if psrl else (1, 2):
            start[s] = 1.0 if psrl else 0.5
        return assembled(outcomes, self.length, 2, start, discount=self.discount, actions=("left", "right"))
