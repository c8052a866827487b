"""Combination locks: one action of several goes on, in each state another one, and only the last one pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from partita.tasks.control._checks import check_between, check_positive, refuse
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular

WRONG = ("restart", "fail")


@dataclass(frozen=True)
class CombinationLock(Tabular):
    """`length` states in a row, of which each has one right action, drawn evenly from `actions` by `seed`.

    wrong "restart", as in Langford's code: every other action leads back to the first state, and each arrival at the
    last state pays 1, staying there included. "fail": every other action leads to a further state that is never left,
    and arriving at the last state pays 1 once. Acting blindly opens the lock with a chance of actions^-(length - 1).
    """

    length: int = 6
    actions: int = 2
    wrong: Literal["restart", "fail"] = "restart"
    seed: int = 0
    discount: float = 0.95
    max_steps: int = 12

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_between(self, "discount", 0.0, 1.0)
        if self.wrong not in WRONG:
            raise refuse(self, "wrong", self.wrong, f"choose {' or '.join(WRONG)}")
        for name in ("length", "actions"):
            if getattr(self, name) < 2:
                raise refuse(self, name, getattr(self, name), "give 2 or more")
        if self.seed < 0:
            raise refuse(self, "seed", self.seed, "give 0 or more")

    @property
    def horizon(self) -> int:
        return self.max_steps

    @property
    def right(self) -> NDArray[np.int64]:
        """The right action of each state, (length,)."""
        return np.random.default_rng(self.seed).integers(0, self.actions, self.length)

    def finite(self) -> FiniteMDP:
        last, fails, right = self.length - 1, self.wrong == "fail", self.right
        ends = (last, self.length) if fails else ()
        outcomes = []
        for s in range(self.length + fails):
            for action in range(self.actions):
                if s in ends:
                    after, paid = s, 0.0
                elif action == right[s]:
                    after, paid = min(s + 1, last), float(s + 1 >= last)
                else:
                    after, paid = (self.length if fails else 0), 0.0
                outcomes.append((s, action, after, 1.0, paid))
        return assembled(outcomes, self.length + fails, self.actions, discount=self.discount)
