"""LinUCB, also known as OFUL: Improved Algorithms for Linear Stochastic Bandits (Abbasi-Yadkori, Pal and Szepesvari,
2011), with UCB1 and Exp3 for arms that have nothing in common.

    ||hhat - h||_V <= sqrt(lam) S + R sqrt(2 log(1/delta) + log det(V / lam))    for all t, in 1 - delta of runs

and the arm that is best within that set is played. Theorem 2 is known here from other works, the paper not being at
hand. `linucb`, `ucb1` and `exp3` play any task that has a bandit: `sphere_bandit` has no state, the others have one, of
which none of the three knows.
"""

from __future__ import annotations

from partita.core.paper import Identity, Paper
from partita.loops.exact import Exact, solve
from partita.parts.bandits import UCB1, Exp3, LinUCB
from partita.tasks.finite.bandits import SphereBandit

PAPER = Paper(
    key="linucb", title="Improved Algorithms for Linear Stochastic Bandits", arxiv="", kind="baseline",
    authors="Abbasi-Yadkori et al.", year=2011, changes=("solver",), loop="exact",
)  # fmt: skip

LINUCB = Exact(solver=LinUCB())

RECIPES = {"linucb": LINUCB, "ucb1": Exact(solver=UCB1()), "exp3": Exact(solver=Exp3())}


def outside(seed: int, runs: int = 200, rounds: int = 2000, delta: float = 0.1) -> float:
    """The share of runs in which the confidence set was without the true parameter at any of 100 reports."""
    solver = LinUCB(rounds=rounds, runs=runs, delta=delta, lam=1.0)
    return 1 - solve(Exact(solver=solver), SphereBandit(drawn=seed).bandit, seed).solution.numbers["held"]


CLAIMS = (
    Identity(
        statement="without a state, the confidence set holds the true parameter in at least 9 of 10 runs (delta 0.1)",
        measure=outside, expected=0.0, tolerance=0.1, seeds=8,
    ),
)  # fmt: skip
