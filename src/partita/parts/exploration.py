"""Solvers that may only sample a process, episode by episode, and what not knowing it costs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from partita.core.limits import check_count
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.task import Tables, tables


class Seen:
    """What H-step episodes have shown: counts (S * A, S), visits (S * A,), and chance = counts / visits, 0 if none.

    Pooled over the steps of an episode, on which transitions do not depend. reached: visits of states by step, (H, S).
    """

    def __init__(self, size: int, choices: int, horizon: int) -> None:
        self.choices = choices
        self.counts, self.chance = np.zeros((2, size * choices, size))
        self.visits, self.reached = np.zeros(size * choices), np.zeros((horizon, size))

    def add(self, states: NDArray[np.int64], actions: NDArray[np.int64]) -> None:
        """An episode: states (H + 1,) and actions (H,)."""
        rows = states[:-1] * self.choices + actions
        np.add.at(self.counts, (rows, states[1:]), 1.0)
        np.add.at(self.visits, rows, 1.0)
        self.chance[rows] = self.counts[rows] / self.visits[rows, None]
        self.reached[np.arange(len(rows)), states[:-1]] += 1


@dataclass(frozen=True)
class Explorer(Solver):
    """Base of solvers that know the rewards of a process and sample the rest; a sweep is an episode.

        regret_k = sum_{j <= k} v*_1 - v_1^{pi_j},    pi_j greedy in the plan for episode j, equal actions by lot

    both values exact, from the process's start; its discount counts, which is 1 in the papers. episodes: K. horizon: H,
    where the process names none or another. Numbers: "value" of pi_k, "regret", "estimate", the plan's own of v*_1.
    Tables: "values" (S,) and "policy" (H, S) of pi_k, "visits" (S, A) before episode k.
    """

    abstract: ClassVar[bool] = True

    episodes: int = 1000
    horizon: int | None = None

    def __post_init__(self) -> None:
        for name in ("episodes", "horizon"):
            value = getattr(self, name)
            if value is not None:
                check_count(f"solver.{name}", value)

    def cannot(self, problem: FiniteMDP) -> str | None:
        if not (self.horizon or problem.horizon):
            return "it has no end; give --solver.horizon"
        rewards = problem.reward if problem.allowed is None else problem.reward[problem.allowed]
        if rewards.min() >= 0 and rewards.max() <= 1:
            return None
        return f"rewards must be from 0 to 1, here they are {rewards.min():g} to {rewards.max():g}; scale those"

    def plan(self, problem: FiniteMDP, seen: Seen, last: Array) -> Array:
        """Q for the next episode, (H, S, A), from what has been seen, the rewards and the last plan.

        It is H before the first; actions that do not exist have -inf and keep it.
        """
        raise NotImplementedError

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        horizon = self.horizon or problem.horizon or 0
        seen, table = Seen(problem.size, problem.choices, horizon), tables(problem)
        exists = np.ones(problem.reward.shape, bool) if problem.allowed is None else problem.allowed
        q = np.tile(np.where(exists, float(horizon), -np.inf), (horizon, 1, 1))
        best, regret = float(problem.start @ problem.induced(horizon)[0][-1]), 0.0
        for _ in range(self.episodes):
            q = self.plan(problem, seen, q)
            policy = by_lot(q, generator)
            values = returns(problem, policy)
            value = float(problem.start @ values)
            regret += best - value
            numbers = {"value": value, "regret": regret, "estimate": float(problem.start @ q[0].max(1))}
            visits = seen.visits.reshape(problem.reward.shape).copy()
            seen.add(*episode(table, policy, generator))
            yield Solution(numbers, {"values": values, "policy": policy, "visits": visits})


def by_lot(q: Array, generator: np.random.Generator) -> NDArray[np.int64]:
    """A best action of each row (..., A), drawn evenly where several are."""
    best = q == q.max(-1, keepdims=True)
    return np.asarray(np.where(best, generator.random(q.shape), -1.0).argmax(-1))


def returns(mdp: FiniteMDP, policy: NDArray[np.int64]) -> Array:
    """The values of a policy (H, S) from its first decision on, (S,)."""
    values, states = np.zeros(mdp.size), np.arange(mdp.size)
    for actions in policy[::-1]:
        values = mdp.q(values)[states, actions]
    return values


def episode(
    table: Tables, policy: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """States (H + 1,) and actions (H,) of an episode by a policy (H, S)."""
    chance, into, choices = table.chance.numpy(), table.into.numpy(), table.allowed.shape[1]
    horizon = len(policy)
    drawn, states = generator.random(horizon + 1), np.zeros(horizon + 1, np.int64)
    states[0] = np.searchsorted(table.starts.numpy(), drawn[-1], side="right")
    for h in range(horizon):
        row = states[h] * choices + policy[h, states[h]]
        states[h + 1] = into[row, np.searchsorted(chance[row], drawn[h], side="right")]
    return states, policy[np.arange(horizon), states[:-1]]
