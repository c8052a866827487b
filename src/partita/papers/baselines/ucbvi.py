"""Minimax Regret Bounds for Reinforcement Learning (Azar, Osband and Munos, 2017), arXiv:1703.05449.

UCBVI: before each episode, backward induction with the transitions that were counted and a bonus for not having counted
more, which makes what is not known look good.

    Q_h(s, a) = min(Q_h of the last episode, H, r(s, a) + sum_s' P^(s'|s, a) V_{h+1}(s') + b_h(s, a)),   V_h = max_a Q_h

With the bonus of Bernstein's kind regret is O(sqrt(H S A T) + H^2 S^2 A + H sqrt(T)), T = K H; with Hoeffding's
O(H sqrt(S A T)). Of the paper the abstract was read; bonuses as other works and their code give them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from partita.core.errors import UserError
from partita.core.limits import check_choice, check_least
from partita.core.paper import Figure, Paper
from partita.loops.exact import Exact, solve
from partita.parts.exploration import Explorer, Seen
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.river_swim import RiverSwim

PAPER = Paper(
    key="ucbvi", title="Minimax Regret Bounds for Reinforcement Learning", arxiv="1703.05449", kind="baseline",
    authors="Azar et al.", year=2017, changes=("solver",), loop="exact",
)  # fmt: skip

KINDS = ("bernstein", "hoeffding")


@dataclass(frozen=True)
class UCBVI(Explorer):
    """Upper confidence bounds on values, by one of two bonuses; N visits of (s, a), N_h of s at step h, scale times

        hoeffding    b_h(s, a) = 7 H L sqrt(1 / N(s, a)),    L = ln(5 S A T / delta),    T = K H
        bernstein    b_h(s, a) = sqrt(8 L Var_{P^(s, a)}(V_{h+1}) / N) + 14 H L / (3 N)
                                 + sqrt(8 / N sum_s' P^(s'|s, a) min(100^2 H^3 S^2 A L^2 / N_{h+1}(s'), H^2))

    Without a visit Q stays at H. At scale 1 no Q is below the best value, with probability 1 - delta, but Hoeffding's
    keeps every Q at H until a pair has been visited N > 49 L^2 times, thousands; a smaller scale learns in less. At
    scale 0 it is greedy in what was counted.
    """

    bonus: Literal["bernstein", "hoeffding"] = "bernstein"
    scale: float = 1.0
    delta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver.bonus", self.bonus, KINDS)
        check_least("solver.scale", self.scale)
        if not 0 < self.delta < 1:
            raise UserError(f"solver.delta: expected a number between 0 and 1, got {self.delta}")

    def plan(self, problem: FiniteMDP, seen: Seen, last: Array) -> Array:
        upper, values = last.copy(), np.zeros(problem.size)
        horizon, size, choices = last.shape
        log = math.log(5 * size * choices * self.episodes * horizon / self.delta)
        visits = np.where(seen.visits > 0, seen.visits, np.nan)  # nan: no visit
        if self.bonus == "hoeffding":
            fixed = np.tile(7 * horizon * log / np.sqrt(visits), (horizon, 1))
        else:
            most = 1e4 * horizon**3 * size**2 * choices * log**2
            spread = np.minimum(most / np.maximum(seen.reached, most / horizon**2), horizon**2)
            following = np.vstack([spread[1:], np.zeros(size)])  # nothing follows the last step
            fixed = 14 * horizon * log / (3 * visits) + np.sqrt(8 / visits * (following @ seen.chance.T))
        for h in reversed(range(horizon)):
            mean, square = (seen.chance @ np.stack([values, values**2], 1)).T
            bonus = fixed[h]
            if self.bonus == "bernstein":
                bonus = bonus + np.sqrt(8 * log * np.maximum(square - mean**2, 0) / visits)
            found = problem.reward + (problem.discount * mean + self.scale * bonus).reshape(size, choices)
            upper[h] = np.fmin(upper[h], found)
            values = upper[h].max(1)
        return upper


RECIPES = {  # at scale 1 nothing is learnt in as many episodes
    "ucbvi": Exact(solver=UCBVI(scale=0.003, horizon=20)),
    "ucbvi_hoeffding": Exact(solver=UCBVI(bonus="hoeffding", scale=0.003, horizon=20)),
}

PLACES = tuple(float(x) for x in np.unique(np.geomspace(10, 1000, 20).round()))


def regrets(seed: int) -> dict[str, Array]:
    """Regret on RiverSwim at PLACES, by bonus, and without one."""
    solvers = {
        "Bernstein": UCBVI(scale=0.003, horizon=20),
        "Hoeffding": UCBVI(bonus="hoeffding", scale=0.003, horizon=20),
        "no bonus": UCBVI(scale=0.0, horizon=20),
    }
    found = {n: solve(Exact(solver=s), RiverSwim(discount=1.0).process, seed).curves for n, s in solvers.items()}
    return {name: np.interp(PLACES, curves["sweep"], curves["regret"]) for name, curves in found.items()}


FIGURES = (
    Figure(
        title="Regret over episodes of RiverSwim, bonuses at 0.003 of the paper's",
        x_name="episodes",
        y_name="regret",
        x=PLACES,
        measure=regrets,
        theory={"sqrt(K), scaled": lambda k: 3 * k**0.5},
        log=True,
    ),
)
