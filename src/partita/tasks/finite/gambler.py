"""The gambler's problem: how much to stake on heads."""

from __future__ import annotations

from dataclasses import dataclass

from partita.tasks.control._checks import check_between, check_positive, refuse
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular


@dataclass(frozen=True)
class Gambler(Tabular):
    """Capital from 0 to `goal` (Sutton and Barto, 2018, example 4.3); action a stakes a + 1 on the toss of a coin.

        s' = s + stake with probability heads, else s - stake,    stake <= min(s, goal - s)

    Coming to the goal pays 1; there, and at 0, it is over. capital: what one begins with. Many stakes are equally good.
    """

    goal: int = 100
    heads: float = 0.4
    capital: int = 50
    discount: float = 1.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        for name in ("heads", "discount"):
            check_between(self, name, 0.0, 1.0)
        if self.goal < 2:
            raise refuse(self, "goal", self.goal, "give 2 or more")
        if not 0 < self.capital < self.goal:
            raise refuse(self, "capital", self.capital, f"give 1 to {self.goal - 1}")

    @property
    def horizon(self) -> int:
        return self.max_steps

    def finite(self) -> FiniteMDP:
        outcomes = [(s, 0, s, 1.0, 0.0) for s in (0, self.goal)]
        for s in range(1, self.goal):
            for stake in range(1, min(s, self.goal - s) + 1):
                won = s + stake
                outcomes.append((s, stake - 1, won, self.heads, float(won == self.goal)))
                outcomes.append((s, stake - 1, s - stake, 1 - self.heads, 0.0))
        stakes = tuple(f"stake {i + 1}" for i in range(self.goal // 2))
        return assembled(outcomes, self.goal + 1, len(stakes), self.capital, discount=self.discount, actions=stakes)
