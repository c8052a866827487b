"""Chain: going forward pays at the end, falling back pays a little at once."""

from __future__ import annotations

from dataclasses import dataclass

from partita.tasks.control._checks import check_between, check_finite, check_positive, refuse
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular


@dataclass(frozen=True)
class Chain(Tabular):
    """States in a row (Strens, 2000; Gym's NChain-v0); action 0 goes forward, 1 back to the first state.

    slip: chance that the other action is carried out. Back pays `small`; forward pays nothing, but in the last state,
    where it stays, `large`. Begins in the first state.
    """

    length: int = 5
    slip: float = 0.2
    small: float = 2.0
    large: float = 10.0
    discount: float = 0.95
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_finite(self, "small", "large")
        for name in ("slip", "discount"):
            check_between(self, name, 0.0, 1.0)
        if self.length < 2:
            raise refuse(self, "length", self.length, "give 2 states or more")

    @property
    def horizon(self) -> int:
        return self.max_steps

    def finite(self) -> FiniteMDP:
        last, outcomes = self.length - 1, []
        for s in range(self.length):
            for action, forward in ((0, 1 - self.slip), (1, self.slip)):
                outcomes.append((s, action, min(s + 1, last), forward, self.large if s == last else 0.0))
                outcomes.append((s, action, 0, 1 - forward, self.small))
        return assembled(outcomes, self.length, 2, discount=self.discount, actions=("forward", "back"))
