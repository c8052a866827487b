"""`FiniteMDP`: a decision process as tables, dense or sparse, checked when it is made, and what follows from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import MatrixRankWarning, gmres, spsolve

from partita.core.errors import UserError
from partita.core.limits import check_share

Array = NDArray[np.float64]
Table = Any  # a NumPy array or a SciPy sparse array: both multiply by @
CLOSE = 1e-9  # how far a row of probabilities may be from 1
LARGE = 1000  # states beyond which sparse systems are solved by iteration first
HUGE = 1e12  # times the rewards: beyond it values are what rounding makes of a singular system


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """S states, A actions, and what they lead to; all float64.

        q(s, a) = reward(s, a) + discount * sum_s' P(s'|s, a) v(s')

    transitions: P, (S * A, S), row s * A + a, a NumPy array or any SciPy sparse one (kept as CSR). reward: (S, A), the
    expected reward. start: (S,), probabilities of the first state. discount: in [0, 1]; 1 needs a horizon, or states
    that are never left and pay nothing which every policy comes to. horizon: decisions of an episode, None: no end.
    allowed: (S, A) bool, the actions that exist (None: all); the rows of others are not read. gains: rewards by where
    one comes to, of the shape of P (None: they do not depend on it); `reward` is then computed. states, actions: names.
    """

    transitions: Table
    reward: Array
    start: Array
    discount: float = 0.95
    horizon: int | None = None
    allowed: NDArray[np.bool_] | None = None
    gains: Table | None = None
    states: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("transitions", "gains"):
            value = getattr(self, name)
            if value is not None:
                table = sparse.csr_array(value, dtype=float) if sparse.issparse(value) else np.asarray(value, float)
                put(self, name, table)
        if self.gains is not None:
            expected = self.transitions * self.gains
            put(self, "reward", np.asarray(expected.sum(axis=1)).reshape(np.shape(self.reward)))
        put(self, "reward", np.asarray(self.reward, float))
        put(self, "start", np.asarray(self.start, float))
        check(self)

    @property
    def size(self) -> int:
        """S, the number of states."""
        return self.reward.shape[0]

    @property
    def choices(self) -> int:
        """A, the number of actions."""
        return self.reward.shape[1]

    def but(self, **changes: Any) -> Self:
        """A copy with some fields replaced, checked again."""
        return replace(self, **changes)

    def after(self, values: Array) -> Array:
        """E[v(s') | s, a], (S, A)."""
        return (self.transitions @ values).reshape(self.reward.shape)

    def q(self, values: Array) -> Array:
        """Q of one step and then `values`, (S, A); -inf where an action does not exist."""
        found = self.reward + self.discount * self.after(values)
        return found if self.allowed is None else np.where(self.allowed, found, -np.inf)

    def under(self, policy: NDArray[Any]) -> tuple[Table, Array]:
        """The chain of a policy, (S, S), and its rewards, (S,); a policy is (S,) actions or (S, A) probabilities."""
        if policy.ndim == 1:
            rows = np.arange(self.size) * self.choices + policy
            return self.transitions[rows], self.reward[np.arange(self.size), policy]
        size, choices = self.reward.shape
        chosen = (np.ravel(policy), np.arange(size * choices), np.arange(size + 1) * choices)
        spread = sparse.csr_array(chosen, shape=(size, size * choices))
        return spread @ self.transitions, (policy * self.reward).sum(1)

    def evaluate(self, policy: NDArray[Any]) -> Array:
        """The values of a policy without end, (S,), by a linear system.

        v = r_pi + discount P_pi v
        """
        chain, reward = self.under(policy)
        if self.discount < 1:
            return _solved(chain, self.discount, reward)
        on = ~((chain.diagonal() > 1 - CLOSE) & (reward == 0))  # the others are never left and pay nothing
        values = np.zeros(self.size)
        if on.any():
            values[on] = _solved(chain[on][:, on], 1.0, reward[on])
        return values

    def occupancy(self, policy: NDArray[Any]) -> Array:
        """How much of the discounted time is spent in each state, (S,), which adds up to 1.

        d = (1 - discount) start' (I - discount P_pi)^-1
        """
        chain, _ = self.under(policy)
        return (1 - self.discount) * _solved(chain.T, self.discount, self.start)

    def induced(self, horizon: int | None = None) -> tuple[Array, NDArray[np.int64]]:
        """Best values and first best actions by decisions left, (H + 1, S) and (H, S), row h with h + 1 left.

        v_{h+1}(s) = max_a q_h(s, a),    v_0 = 0
        """
        count = self.horizon if horizon is None else horizon
        if count is None:
            raise UserError("horizon: backward induction needs one; give a number of decisions")
        values, best = [np.zeros(self.size)], []
        for _ in range(count):
            q = self.q(values[-1])
            best.append(q.argmax(1))
            values.append(q.max(1))
        return np.stack(values), np.array(best, np.int64).reshape(count, self.size)

    def name(self, state: int, action: int | None = None) -> str:
        """How messages call a state, or a pair of state and action."""
        text = f"state {state}" + (f" ({self.states[state]})" if self.states else "")
        if action is None:
            return text
        return f"{text}, action {action}" + (f" ({self.actions[action]})" if self.actions else "")


def _solved(chain: Table, discount: float, right: Array) -> Array:
    """(I - discount chain)^-1 right."""
    size = len(right)
    try:
        if sparse.issparse(chain):
            system, failed = sparse.eye_array(size, format="csc") - discount * sparse.csc_array(chain), 1
            if size > LARGE:  # a factorisation fills in
                found, failed = gmres(system, right, rtol=1e-13, atol=0.0, restart=50, maxiter=10)
            if failed:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", MatrixRankWarning)  # its numbers are looked at below
                    found = spsolve(system, right)
        else:
            found = np.linalg.solve(np.eye(size) - discount * chain, right)
    except np.linalg.LinAlgError:
        found = np.full(size, np.nan)
    if not (np.abs(found) <= HUGE * max(1.0, float(np.abs(right).max()))).all():
        raise UserError("discount: 1 leaves the values of this policy without bound; lower it or give a horizon")
    return np.asarray(found)


def check(mdp: FiniteMDP) -> None:
    """Raise UserError, naming the first entry that is wrong."""
    if mdp.reward.ndim != 2 or not all(mdp.reward.shape):
        raise UserError(f"reward: expected a table of states and actions, got shape {mdp.reward.shape}")
    size, choices = mdp.reward.shape
    wanted: dict[str, tuple[int, ...]] = {"transitions": (size * choices, size), "start": (size,)}
    wanted |= {"gains": (size * choices, size), "allowed": (size, choices)}
    for name, shape in wanted.items():
        value = getattr(mdp, name)
        if value is not None and value.shape != shape:
            raise UserError(f"{name}: expected shape {shape}, {size} states and {choices} actions, got {value.shape}")
    for name, count in (("states", size), ("actions", choices)):
        given = getattr(mdp, name)
        if given and len(given) != count:
            raise UserError(f"{name}: expected {count} names, got {len(given)}")
    check_share("discount", mdp.discount)
    if mdp.horizon is not None and mdp.horizon < 1:
        raise UserError(f"horizon: expected 1 or more decisions, got {mdp.horizon}")
    exists = np.ones((size, choices), bool) if mdp.allowed is None else mdp.allowed
    for state in np.flatnonzero(~exists.any(1))[:1]:
        raise UserError(f"allowed: {mdp.name(int(state))} has no action; allow one, such as staying")
    for state, action in np.argwhere(~np.isfinite(mdp.reward) & exists)[:1]:
        raise UserError(f"reward: {mdp.name(state, action)} pays {mdp.reward[state, action]}; give a finite number")
    _probabilities(mdp, exists)
    if not (mdp.start >= 0).all() or not math.isclose(float(mdp.start.sum()), 1, abs_tol=CLOSE):
        raise UserError(f"start: expected probabilities that add up to 1, got a sum of {mdp.start.sum():.6g}")


def _probabilities(mdp: FiniteMDP, exists: NDArray[np.bool_]) -> None:
    table = mdp.transitions
    entries = table.data if sparse.issparse(table) else table
    sums = np.asarray(table.sum(axis=1)).ravel().reshape(exists.shape)
    wrong = ~(np.abs(sums - 1) <= CLOSE) & exists
    for state, action in np.argwhere(wrong)[:1]:
        got = f"{sums[state, action]:.6g}"
        raise UserError(f"transitions: {mdp.name(state, action)}: the probabilities add up to {got}, not 1")
    if not (entries >= 0).all():
        rows = sparse.coo_array(table)
        row, column = next((r, c) for r, c, x in zip(*rows.coords, rows.data, strict=True) if not x >= 0)
        state, action = divmod(int(row), mdp.choices)
        if exists[state, action]:
            raise UserError(f"transitions: {mdp.name(state, action)}: the probability of {mdp.name(int(column))} is "
                            "below 0")  # fmt: skip


def assembled(
    outcomes: Sequence[tuple[int, int, int, float, float]], size: int, choices: int, start: Sequence[float] | int = 0,
    **about: Any,
) -> FiniteMDP:  # fmt: skip
    """A sparse process from outcomes (state, action, next state, probability, reward); equal ones are added up.

    Of several outcomes with the same next state the rewards are averaged. Pairs without any outcome do not exist.
    start: probabilities, or the one first state. about: further fields of `FiniteMDP`.
    """
    listed = np.array([x for x in outcomes if x[3] != 0], float).reshape(-1, 5)
    row, column = (listed[:, 0] * choices + listed[:, 1]).astype(int), listed[:, 2].astype(int)
    shape = (size * choices, size)
    chance = sparse.coo_array((listed[:, 3], (row, column)), shape=shape).tocsr()
    paid = sparse.coo_array((listed[:, 3] * listed[:, 4], (row, column)), shape=shape).tocsr()
    gains = paid.multiply(chance.power(-1.0)).tocsr() if paid.nnz else paid
    exists = np.zeros(size * choices, bool)
    exists[row] = True
    first = np.eye(size)[start] if isinstance(start, int) else np.asarray(start, float)
    allowed = None if exists.all() else exists.reshape(size, choices)
    return FiniteMDP(chance, np.zeros((size, choices)), first, allowed=allowed, gains=gains, **about)
