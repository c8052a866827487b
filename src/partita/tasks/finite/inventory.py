"""Inventory: how much to order before demand is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partita.tasks.control._checks import check_between, check_finite, check_positive, refuse
from partita.tasks.finite.mdp import CLOSE, FiniteMDP, assembled
from partita.tasks.finite.task import Tabular


@dataclass(frozen=True)
class Inventory(Tabular):
    """A stock of at most `capacity` units (Puterman, 1994, section 3.2.2); the action is how many to order.

        u = s + a <= capacity,    s' = max(u - D, 0),    reward = price (u - s') - (fixed + cost a if a > 0) - holding u

    Orders arrive at once, what is not in stock is not sold. demand: the probabilities of D = 0, 1, ... Begins empty.
    """

    capacity: int = 3
    fixed: float = 4.0
    cost: float = 2.0
    holding: float = 1.0
    price: float = 8.0
    demand: tuple[float, ...] = (0.25, 0.5, 0.25)
    discount: float = 0.9
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "max_steps", "capacity")
        check_finite(self, "fixed", "cost", "holding", "price")
        check_between(self, "discount", 0.0, 1.0)
        if not (min(self.demand, default=-1.0) >= 0 and abs(sum(self.demand) - 1) <= CLOSE):
            raise refuse(self, "demand", self.demand, "give probabilities that add up to 1")

    @property
    def horizon(self) -> int:
        return self.max_steps

    def finite(self) -> FiniteMDP:
        stock, chance = np.arange(self.capacity + 1), np.array(self.demand)
        s, order, d = (x.ravel() for x in np.meshgrid(stock, stock, np.arange(len(chance)), indexing="ij"))
        s, order, d = (x[s + order <= self.capacity] for x in (s, order, d))
        after = np.maximum(s + order - d, 0)
        spent = np.where(order > 0, self.fixed + self.cost * order, 0.0) + self.holding * (s + order)
        paid = self.price * (s + order - after) - spent
        outcomes = list(zip(*(x.tolist() for x in (s, order, after, chance[d], paid)), strict=True))
        return assembled(outcomes, len(stock), len(stock), discount=self.discount)
