"""What can have happened in a finite process and what was earned; every policy in turn; and what sweeps miss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from partita.core.errors import UserError
from partita.parts.planning import TIE
from partita.tasks.control.stocked import Kinked
from partita.tasks.finite.mdp import Array, FiniteMDP

DIGITS = 9  # decimals to which equal stocks agree
NODES = 200_000  # outcomes of one decision that are told apart
LARGEST = 50_000_000  # numbers in the laws of one decision, or in those of all policies
Plan = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Entries:
    """What may happen, one entry each: row (E,) s * A + a, into (E,) next state, chance, paid (E,); rows ascend."""

    row: NDArray[np.int64]
    into: NDArray[np.int64]
    chance: Array
    paid: Array


def entries(mdp: FiniteMDP) -> Entries:
    """What may happen in a process, by actions that exist."""
    table = sparse.coo_array(sparse.csr_array(mdp.transitions))
    row, into = (x.astype(np.int64) for x in table.coords)
    exists = np.ones(mdp.reward.size, bool) if mdp.allowed is None else mdp.allowed.ravel()
    real = (table.data > 0) & exists[row]
    row, into, chance = row[real], into[real], table.data[real]
    paid = mdp.reward.ravel()[row] if mdp.gains is None else np.asarray(sparse.csr_array(mdp.gains)[row, into]).ravel()
    return Entries(row, into, chance, paid)


@dataclass(frozen=True)
class Tree:
    """What can have happened by each of H decisions: nodes are pairs of a state and the rewards so far, y.

        y_t = sum_{k < t} discount^k r_k,    c_t = discount^-t (c_0 + y_t)

    so that one tree serves every first stock. state, earned: (M_t,) for t = 0 .. H, M_0 = S. moves: (M_t * A, M_t+1)
    sparse chances. exists: (M_t, A) bool. outcomes: (J,) the returns that can be, ascending; last: (M_H, J) their law.
    """

    mdp: FiniteMDP
    state: list[NDArray[np.int64]]
    earned: list[Array]
    moves: list[Any]
    exists: list[NDArray[np.bool_]]
    outcomes: Array
    last: Array

    def backup(self, f: Any, stock: float, plan: Plan | None = None) -> tuple[Array, Plan]:
        """The laws of a plan in every first state, (S, J), and the plan that is greedy against its laws.

            eta_t(s, c) = sum P r + discount eta_t+1(s', c'),    a = argmax E f(c + G),    c + G = discount^-t (c_0 + x)

        Without a plan that which is found while going back: distributional value iteration. With one its action stays
        unless another is better: a step of policy iteration. stock: c_0. x: the `outcomes`.
        """
        law, found = self.last, []
        for t in reversed(range(len(self.moves))):
            nodes = np.arange(len(self.state[t]))
            ahead = (self.moves[t] @ law).reshape(len(nodes), self.mdp.choices, -1)
            worth = ahead @ f(self.mdp.discount**-t * (stock + self.outcomes))
            worth[~self.exists[t]] = -np.inf
            best = worth.argmax(1)
            if plan is not None:
                kept = worth[nodes, plan[t]]
                best = np.where(worth.max(1) > kept + TIE * np.maximum(1, np.abs(kept)), best, plan[t])
            found.append(best)
            law = ahead[nodes, best if plan is None else plan[t]]
        return law, found[::-1]

    def followed(self, plan: Plan, stock: float) -> Array:
        """Where a plan may come to, and what it does there: rows (decision, state, stock, action)."""
        here, rows = self.mdp.start, []
        for t, action in enumerate(plan):
            at = np.flatnonzero(here > 0)
            held = self.mdp.discount**-t * (stock + self.earned[t][at])
            rows.append(np.stack((np.full(len(at), t), self.state[t][at], held, action[at]), 1))
            here = here[at] @ self.moves[t][at * self.mdp.choices + action[at]]
        return np.concatenate(rows)


def unfold(mdp: FiniteMDP, horizon: int) -> Tree:
    """The tree of so many decisions; UserError where it has too many nodes for exact laws."""
    every, size, choices = entries(mdp), mdp.size, mdp.choices
    first = np.searchsorted(every.row, np.arange(size * choices + 1))
    allowed = np.ones((size, choices), bool) if mdp.allowed is None else mdp.allowed
    state, earned, moves = [np.arange(size)], [np.zeros(size)], []
    for t in range(horizon):
        rows = (state[t][:, None] * choices + np.arange(choices)).ravel()
        count = first[rows + 1] - first[rows]
        _fits(int(count.sum()), NODES)
        owner = np.repeat(np.arange(len(rows)), count)
        entry = np.arange(len(owner)) + np.repeat(first[rows] - count.cumsum() + count, count)
        into, sums = every.into[entry], earned[t][owner // choices] + mdp.discount**t * every.paid[entry]
        pairs = np.stack((into, sums.round(DIGITS)), 1)
        _, one, index = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        moves.append(sparse.csr_array((every.chance[entry], (owner, index.ravel())), shape=(len(rows), len(one))))
        state.append(into[one])
        earned.append(sums[one])
    _, one, index = np.unique(earned[-1].round(DIGITS), return_index=True, return_inverse=True)
    _fits(len(index) * len(one) * choices, LARGEST)
    last = np.zeros((len(index), len(one)))
    last[np.arange(len(index)), index.ravel()] = 1
    return Tree(mdp, state, earned, moves, [allowed[s] for s in state[:-1]], earned[-1][one], last)


def _fits(size: int, most: int) -> None:
    if size > most:
        raise UserError("solver.horizon: so many different returns can be earned that exact laws do not fit; lower it, "
                        "round the rewards, or use stock_vi on a process without end")  # fmt: skip


def lower_tail(outcomes: Array, law: Array, tau: float) -> Array:
    """CVaR: the mean of the lowest share tau of laws (..., J) over outcomes (..., J).

    CVaR_tau = 1 / tau * integral_0^tau F^-1(u) du
    """
    order = np.argsort(np.broadcast_to(outcomes, law.shape), -1)
    x = np.take_along_axis(np.broadcast_to(outcomes, law.shape), order, -1)
    below = np.minimum(np.take_along_axis(law, order, -1).cumsum(-1), tau)
    return (np.diff(below, axis=-1, prepend=0.0) * x).sum(-1) / tau


def brute_force(mdp: FiniteMDP, horizon: int) -> tuple[Array, Array]:
    """Every policy that knows all states it has been in, without exception: returns and chances, (policies, paths).

    A policy is a table of actions by what was seen, s_0 .. s_t; a path is s_0 .. s_H. All actions must exist.
    """
    size, choices, first = mdp.size, mdp.choices, np.flatnonzero(mdp.start)
    table = sparse.csr_array(mdp.transitions).toarray()
    paid = np.repeat(mdp.reward.reshape(-1, 1), size, 1) if mdp.gains is None else sparse.csr_array(mdp.gains).toarray()
    counts = [len(first) * size**t for t in range(horizon)]
    total, length = choices ** sum(counts), len(first) * size**horizon
    if total * length > LARGEST or mdp.allowed is not None:
        raise UserError(f"horizon: {total:,} policies on {length:,} paths are too many to try, or actions are missing")
    plans = np.arange(total)[:, None] // choices ** np.arange(sum(counts)) % choices
    axes = np.meshgrid(np.arange(len(first)), *[np.arange(size)] * horizon, indexing="ij")
    paths = np.stack(axes, -1).reshape(-1, horizon + 1)
    seen, at, offset = paths[:, 0], first[paths[:, 0]], 0
    chance = np.tile(mdp.start[at], (total, 1))
    gained = np.zeros_like(chance)
    for t in range(horizon):
        row, after = at * choices + plans[:, offset + seen], paths[:, t + 1]
        chance *= table[row, after]
        gained += mdp.discount**t * paid[row, after]
        offset, seen, at = offset + counts[t], seen * size + after, after
    return gained, chance


def drawn(seed: int, discount: float, horizon: int | None = None) -> FiniteMDP:
    """A process of two states and two actions with rewards -1, 0 or 1 by where one comes to."""
    rng = np.random.default_rng(seed)
    gains = rng.integers(-1, 2, (4, 2))
    return FiniteMDP(rng.dirichlet((1, 1), 4), np.zeros((2, 2)), np.eye(2)[0], discount, horizon, gains=gains)


def excess(seed: int, most: int = 6, discount: float = 0.7) -> float:
    """By how much n sweeps miss the value of `most` sweeps beyond the bound, at worst over n, states and stocks.

    |F_n - F_m| <= L discount^n R (1 - discount^(m - n)) / (1 - discount)
    """
    mdp, f, worst = drawn(seed, discount), Kinked(1.0, -1.0), 0.0
    reward, stocks = float(np.abs(entries(mdp).paid).max()), np.linspace(-3, 3, 7)
    values = []
    for n in range(1, most + 1):
        tree = unfold(mdp, n)
        values.append([tree.backup(f, c)[0] @ f(c + tree.outcomes) for c in stocks])
    for n, found in enumerate(values, 1):
        bound = discount**n * reward * (1 - discount ** (most - n)) / (1 - discount)
        worst = max(worst, float(np.abs(np.subtract(found, values[-1])).max()) - bound)
    return worst


SWEEPS = (1, 2, 3, 4, 5)


def missed(seed: int, most: int = 6, discount: float = 0.7) -> dict[str, list[float]]:
    """How far the best values of n sweeps are from those of `most`, at most over states and stocks."""
    mdp, f, stocks = drawn(seed, discount), Kinked(1.0, -1.0), np.linspace(-3, 3, 7)
    trees = [unfold(mdp, n) for n in (*SWEEPS, most)]
    values = [np.array([tree.backup(f, c)[0] @ f(c + tree.outcomes) for c in stocks]) for tree in trees]
    return {"n sweeps": [float(np.abs(found - values[-1]).max()) for found in values[:-1]]}
