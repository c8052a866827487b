"""Small processes in which what was earned before matters to those who do not merely add up: gambles and a body."""

from __future__ import annotations

from dataclasses import dataclass

from partita.tasks.control._checks import check_between, check_finite, check_positive
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular


@dataclass(frozen=True)
class Windfall(Tabular):
    """Luck first, then one choice: something safe, or a gamble. The choice does not see the luck.

        r_1 = prize with chance 1/2, else 0,    r_2 = sure (action 0), or win with chance odds, else 0 (action 1)

    An episode begins lucky or unlucky, where nothing is chosen, and comes to the same table. No discount.
    """

    prize: float = 10.0
    sure: float = 1.0
    win: float = 4.0
    odds: float = 0.5

    def __post_init__(self) -> None:
        check_finite(self, "prize", "sure", "win")
        check_between(self, "odds", 0.0, 1.0)

    @property
    def horizon(self) -> int:
        return 2

    def finite(self) -> FiniteMDP:
        lucky, unlucky, table, won, done = range(5)
        outcomes = [(s, a, table, 1.0, paid) for s, paid in ((lucky, self.prize), (unlucky, 0.0)) for a in (0, 1)]
        outcomes += [(table, 0, done, 1.0, self.sure), (table, 1, won, self.odds, self.win)]
        outcomes += [(table, 1, done, 1 - self.odds, 0.0)]
        outcomes += [(s, a, s, 1.0, 0.0) for s in (won, done) for a in (0, 1)]
        return assembled(
            outcomes, 5, 2, (0.5, 0.5, 0.0, 0.0, 0.0), discount=1.0, horizon=2, actions=("safe", "gamble"),
            states=("lucky", "unlucky", "table", "won", "done"),
        )  # fmt: skip


@dataclass(frozen=True)
class BettingTable(Tabular):
    """`rounds` bets of 0 to `most` on a coin that is a little kind. The last outcome is seen, what was won is not.

        r = bet * (edge + spread)   or   bet * (edge - spread),    each with chance 1/2

    spread 0 is no risk: the largest bet is best for everybody. No discount.
    """

    rounds: int = 5
    most: int = 2
    edge: float = 1.0
    spread: float = 3.0

    def __post_init__(self) -> None:
        check_positive(self, "rounds", "most")
        check_finite(self, "edge", "spread")

    @property
    def horizon(self) -> int:
        return self.rounds

    def finite(self) -> FiniteMDP:
        _, won, lost = range(3)
        paid = ((won, self.edge + self.spread), (lost, self.edge - self.spread))
        outcomes = [(s, b, into, 0.5, b * pay) for s in range(3) for b in range(self.most + 1) for into, pay in paid]
        return assembled(
            outcomes, 3, self.most + 1, discount=1.0, horizon=self.rounds, states=("first", "won", "lost"),
            actions=tuple(f"bet {b}" for b in range(self.most + 1)),
        )  # fmt: skip


@dataclass(frozen=True)
class Body(Tabular):
    """A body that eats, or not, and now and then uses up more than it can eat at once; `hours` decisions.

        r = a - loss * 1{exertion},    a in {0, 1},    exertion with chance `chance`

    To end where it began, it must remember what it owes: the last exertion is seen, the sum is not. No discount.
    """

    hours: int = 6
    loss: float = 2.0
    chance: float = 0.25

    def __post_init__(self) -> None:
        check_positive(self, "hours", "loss")
        check_between(self, "chance", 0.0, 1.0)

    @property
    def horizon(self) -> int:
        return self.hours

    def finite(self) -> FiniteMDP:
        calm, exerted = range(2)
        outcomes = [(s, a, calm, 1 - self.chance, float(a)) for s in range(2) for a in range(2)]
        outcomes += [(s, a, exerted, self.chance, a - self.loss) for s in range(2) for a in range(2)]
        return assembled(
            outcomes, 2, 2, discount=1.0, horizon=self.hours, states=("calm", "exerted"), actions=("fast", "eat")
        )
