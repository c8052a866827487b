"""Solvers that know the process: dynamic and linear programming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.mdp import Array, FiniteMDP

TIE = 1e-12  # actions this near to the best one are as good


class Planner(Solver):
    """A solver that knows a process without end."""

    def cannot(self, problem: FiniteMDP) -> str | None:
        if problem.horizon is None:
            return None
        return f"it ends after {problem.horizon} decisions; use backward_induction, or give --discount, without end"


def about(mdp: FiniteMDP, values: Array, policy: NDArray[Any], **numbers: float) -> Solution:
    """A solution that consists of values and a policy."""
    return Solution({"value": float(mdp.start @ values), **numbers}, {"values": values, "policy": policy})


def bounds(mdp: FiniteMDP, change: Array) -> tuple[float, float]:
    """How far the best values may be below and above those of a sweep that changed them by `change` (MacQueen, 1966).

        v + factor min(change) <= v* <= v + factor max(change),    factor = discount / (1 - discount)

    Without a discount there are none: infinite, unless nothing changed.
    """
    factor = mdp.discount / (1 - mdp.discount) if mdp.discount < 1 else np.inf
    least, most = float(change.min()), float(change.max())
    return (factor * least if least else 0.0), (factor * most if most else 0.0)


def iterated(
    mdp: FiniteMDP, operator: Callable[[Array], Array], tolerance: float
) -> Iterator[tuple[Array, Array, float, float]]:
    """Sweeps v <- max_a Q(v) from 0 with any operator that shifts and shrinks as Bellman's does.

    Yields v, Q of the v before, the largest change, and how far v can be from its limit: by MacQueen's bounds, in the
    middle of which the last v is put, or, without a discount, the change. Ends when that is within the tolerance.
    """
    values, done = np.zeros(mdp.size), False
    while not done:
        q = operator(values)
        change, values = q.max(1) - values, q.max(1)
        low, high = bounds(mdp, change)
        moved = float(np.abs(change).max())
        error = moved if mdp.discount == 1 else (high - low) / 2
        done = error <= tolerance
        if done and mdp.discount < 1:
            values = values + (low + high) / 2
        yield values, q, moved, error


@dataclass(frozen=True)
class ValueIteration(Planner):
    """Bellman's optimality operator, again and again (Bellman, 1957; Puterman, 1994, section 6.3).

        v <- max_a q(s, a),    q = r + discount P v

    Stops when every value is known within `tolerance`, by MacQueen's bounds, in the middle of which the answer is put;
    without a discount, when a sweep changes none by more than `tolerance`. The policy is greedy in the last values.
    """

    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        check_above("solver.tolerance", self.tolerance)

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        for values, q, change, error in iterated(problem, problem.q, self.tolerance):
            yield about(problem, values, q.argmax(1), change=change, error=error)


@dataclass(frozen=True)
class ModifiedPolicyIteration(Planner):
    """A greedy policy, and some sweeps of its own operator (Puterman and Shin, 1978).

        pi(s) = argmax_a q(s, a),    v <- max_a q(s, a),    then `depth` times v <- r_pi + discount P_pi v

    depth 0 is value iteration. Starts from the least values that a policy can have, so that values only rise. Stops as
    value iteration does.
    """

    tolerance: float = 1e-8
    depth: int = 20

    def __post_init__(self) -> None:
        check_above("solver.tolerance", self.tolerance)
        check_least("solver.depth", self.depth)

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        exists = slice(None) if problem.allowed is None else problem.allowed
        least = float(problem.reward[exists].min())
        values = np.full(problem.size, least / (1 - problem.discount) if problem.discount < 1 else 0.0)
        done = False
        while not done:
            q = problem.q(values)
            policy, found = q.argmax(1), q.max(1)
            change = found - values
            low, high = bounds(problem, change)
            error = float(np.abs(change).max()) if problem.discount == 1 else (high - low) / 2
            done, values = error <= self.tolerance, found
            if done:
                values = values + (low + high) / 2 if problem.discount < 1 else values
            else:
                chain, reward = problem.under(policy)
                for _ in range(self.depth):
                    values = reward + problem.discount * (chain @ values)
            yield about(problem, values, policy, change=float(np.abs(change).max()), error=error)


@dataclass(frozen=True)
class PolicyIteration(Planner):
    """The values of a policy, exactly, and the greedy policy of these, until it stays (Howard, 1960).

        v = (I - discount P_pi)^-1 r_pi,    pi(s) <- argmax_a q(s, a)

    An action is only changed for a better one.
    """

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        states = np.arange(problem.size)
        policy = problem.q(np.zeros(problem.size)).argmax(1)
        changed = 1
        while changed:
            values = problem.evaluate(policy)
            q = problem.q(values)
            best = q.max(1)
            better = best > q[states, policy] + TIE * np.maximum(1, np.abs(best))
            changed = int(better.sum())
            policy = np.where(better, q.argmax(1), policy)
            yield about(problem, values, policy, change=float((best - values).max()), changed=float(changed))


@dataclass(frozen=True)
class LinearProgramming(Planner):
    """The least values that no action exceeds (d'Epenoux, 1963), by HiGHS.

        min mean_s v(s)   with   v(s) >= r(s, a) + discount sum_s' P(s'|s, a) v(s')

    The prices of the constraints are how often pairs are visited, starting anywhere: table "visits", (S, A).
    """

    def cannot(self, problem: FiniteMDP) -> str | None:
        if problem.discount == 1:
            return "its discount is 1; give --discount, or use value_iteration"
        return super().cannot(problem)

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        from scipy.optimize import linprog

        size, choices = problem.reward.shape
        exists = np.ones(size * choices, bool) if problem.allowed is None else problem.allowed.ravel()
        rows = size * choices
        own = sparse.csr_array((np.ones(rows), np.repeat(np.arange(size), choices), np.arange(rows + 1)))
        above = (problem.discount * sparse.csr_array(problem.transitions) - own)[exists]
        found = linprog(
            np.full(size, 1 / size), A_ub=above, b_ub=-problem.reward.ravel()[exists], bounds=(None, None),
            method="highs",
        )  # fmt: skip
        if found.status != 0:
            raise UserError(f"solver linear_programming: {found.message}")
        visits = np.zeros(size * choices)
        visits[exists] = -found.ineqlin.marginals
        solution = about(problem, found.x, problem.q(found.x).argmax(1), visits=float(visits.sum()))
        yield Solution(solution.numbers, {**solution.tables, "visits": visits.reshape(size, choices)})


@dataclass(frozen=True)
class BackwardInduction(Solver):
    """The best values by the decisions that are left.

        v_{h+1}(s) = max_a r(s, a) + discount sum_s' P(s'|s, a) v_h(s'),    v_0 = 0

    horizon: decisions, where the process names none. Table "values" is (S,) with all decisions left, "policy" (H, S)
    the best action at each decision, from the first.
    """

    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.horizon is not None and self.horizon < 1:
            raise UserError(f"solver.horizon: expected 1 or more decisions, got {self.horizon}")

    def cannot(self, problem: FiniteMDP) -> str | None:
        return None if self.horizon or problem.horizon else "it has no end; give --solver.horizon"

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        values, best = problem.induced(self.horizon)
        yield about(problem, values[-1], best[::-1])
