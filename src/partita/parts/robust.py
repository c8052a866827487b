"""Solvers that know the process but roughly: its rows may be the worst ones near the nominal ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.parts.planning import about, iterated
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.uncertainty import Name, named


@dataclass(frozen=True)
class RobustValueIteration(Solver):
    """Value iteration against an adversary that chooses each row anew (Iyengar, 2005; Nilim and El Ghaoui, 2005).

        v(s) <- max_a r(s, a) + discount inf_p p'v,    p with D(p, P(.|s, a)) <= radius

    With a price (not None) rows have no limit, but leaving the nominal one costs: inf_p p'v + price D(p, P(.|s, a)).
    uncertainty: D. Rewards are those expected of the pair by its nominal row. Stops as value iteration does, whose
    bounds hold for this operator too; where the process has an end, after as many sweeps as it has decisions: table
    "policy" is then (H, S), from the first decision.
    """

    uncertainty: Name = "total_variation"
    radius: float = 0.1
    price: float | None = None
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        check_above("solver.tolerance", self.tolerance)
        named("solver.uncertainty", self.uncertainty)
        if not 0 <= self.radius < math.inf:
            raise UserError(f"solver.radius: expected a number of 0 or more, got {self.radius}")
        if self.price is not None and not 0 < self.price < math.inf:
            raise UserError(f"solver.price: expected a number above 0, got {self.price}; leave it out for a radius")

    def q(self, mdp: FiniteMDP, values: Array) -> Array:
        """Q of one step by the worst rows and then `values`, (S, A); -inf where an action does not exist."""
        exists = np.ones(mdp.reward.shape, bool) if mdp.allowed is None else mdp.allowed
        table, among, low = mdp.transitions[exists.ravel()], named("solver.uncertainty", self.uncertainty), values.min()
        if self.price is None:
            after = among.worst(table, values - low, self.radius)
        else:
            after = among.penalised(table, values - low, self.price)
        found = np.full(mdp.reward.shape, -np.inf)
        found[exists] = mdp.reward[exists] + mdp.discount * (low + after)
        return found

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        if problem.horizon is None:
            for values, q, change, error in iterated(problem, lambda v: self.q(problem, v), self.tolerance):
                yield about(problem, values, q.argmax(1), change=change, error=error)
            return
        values, policies = np.zeros(problem.size), list[Array]()
        for _ in range(problem.horizon):
            q = self.q(problem, values)
            moved, values = float(np.abs(q.max(1) - values).max()), q.max(1)
            policies.insert(0, q.argmax(1))
            yield about(problem, values, np.stack(policies), change=moved)
