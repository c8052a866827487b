"""`LinearMDP`: a finite process whose transitions and rewards are linear in features, with an end; and instances."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from partita.core.errors import UserError
from partita.tasks.control._checks import check_between, refuse
from partita.tasks.finite.mdp import CLOSE, Array, FiniteMDP
from partita.tasks.finite.task import Tabular

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Logged:
    """Trajectories: states, actions and the states that followed, (K, H) each."""

    states: Ints
    actions: Ints
    following: Ints


@dataclass(frozen=True, eq=False)
class LinearMDP:
    """H decisions in S states with A actions, linear in d features; all float64.

        P_h(s'|s, a) = sum_i phi_i(s, a) mu_{h,i}(s'),    r_h(s, a) = sum_i phi_i(s, a) theta_{h,i}

    features: phi, (S, A, d), nowhere below 0 and adding up to 1. factors: mu, (H, d, S), distributions of states.
    weights: theta, (H, d). start: (S,). shifted: factors of the process that a policy meets later (None: the same).
    """

    features: Array
    factors: Array
    weights: Array
    start: Array
    shifted: Array | None = None

    def __post_init__(self) -> None:
        for name in ("features", "factors", "weights", "start", "shifted"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), float))
        check(self)

    @property
    def size(self) -> int:
        """S, the number of states."""
        return self.features.shape[0]

    @property
    def choices(self) -> int:
        """A, the number of actions."""
        return self.features.shape[1]

    @property
    def horizon(self) -> int:
        """H, the number of decisions."""
        return len(self.factors)

    def but(self, **changes: Any) -> Self:
        """A copy with some fields replaced, checked again."""
        return replace(self, **changes)

    def later(self) -> Self:
        """The process that a policy meets later."""
        return self if self.shifted is None else self.but(factors=self.shifted, shifted=None)

    def q(self, h: int, values: Array) -> Array:
        """Q of decision h and then `values`, (S, A)."""
        return self.features @ (self.weights[h] + self.factors[h] @ values)

    def evaluate(self, policy: NDArray[Any]) -> Array:
        """The values of a policy, (H + 1, S), 0 at the end; a policy is (H, S) actions or (H, S, A) probabilities."""
        chances = np.eye(self.choices)[policy] if policy.ndim == 2 else policy
        values = np.zeros((self.horizon + 1, self.size))
        for h in reversed(range(self.horizon)):
            values[h] = (chances[h] * self.q(h, values[h + 1])).sum(1)
        return values

    def sample(self, count: int, generator: np.random.Generator, policy: Array | None = None) -> Logged:
        """Trajectories of a policy of probabilities, (H, S, A); None: all actions alike."""
        shape = (self.horizon, self.size, self.choices)
        policy = np.full(shape, 1 / self.choices) if policy is None else policy
        found: Any = np.empty((3, count, self.horizon), np.int64)
        state = drawn(np.broadcast_to(self.start, (count, self.size)), generator)
        for h in range(self.horizon):
            action = drawn(policy[h, state], generator)
            after = drawn((self.features.reshape(-1, self.features.shape[2]) @ self.factors[h])[
                state * self.choices + action], generator)  # fmt: skip
            found[:, :, h] = state, action, after
            state = after
        return Logged(*found)

    def unrolled(self) -> FiniteMDP:
        """The same process without a clock: a state for each state at each decision, and one that ends it."""
        size, choices, ends = self.size, self.choices, self.horizon * self.size
        table = np.zeros((self.horizon, size, choices, ends + 1))
        for h in range(self.horizon - 1):
            table[h, :, :, (h + 1) * size : (h + 2) * size] = self.features @ self.factors[h]
        table[-1, :, :, ends] = 1
        rows = np.concatenate((table.reshape(-1, ends + 1), np.tile(np.eye(ends + 1)[ends], (choices, 1))))
        reward = np.einsum("sai,hi->hsa", self.features, self.weights).reshape(ends, choices)
        start = np.concatenate((self.start, np.zeros(ends + 1 - size)))
        return FiniteMDP(sparse.csr_array(rows), np.vstack((reward, np.zeros(choices))), start, 1.0, self.horizon)


def drawn(chances: Array, generator: np.random.Generator) -> Ints:
    """An index for each row of probabilities."""
    upto = np.cumsum(chances, 1)
    return (generator.random((len(chances), 1)) * upto[:, -1:] >= upto).sum(1)


def check(linear: LinearMDP) -> None:
    """Raise UserError, naming the first entry that is wrong."""
    if linear.features.ndim != 3 or not all(linear.features.shape):
        raise UserError(f"features: expected states x actions x features, got shape {linear.features.shape}")
    size, _, d = linear.features.shape
    if linear.factors.ndim != 3 or not len(linear.factors):
        raise UserError(f"factors: expected decisions x features x states, got shape {linear.factors.shape}")
    horizon = len(linear.factors)
    shapes = {"factors": (horizon, d, size), "shifted": (horizon, d, size), "weights": (horizon, d), "start": (size,)}
    for name, shape in shapes.items():
        value = getattr(linear, name)
        if value is not None and value.shape != shape:
            raise UserError(f"{name}: expected shape {shape} for {size} states and {d} features, got {value.shape}")
    if not np.isfinite(linear.weights).all():
        raise UserError("weights: expected finite numbers")
    for name, axes in (("features", "state {}, action {}"), ("factors", "decision {}, feature {}"),
                       ("shifted", "decision {}, feature {}"), ("start", "")):  # fmt: skip
        value = getattr(linear, name)
        if value is None:
            continue
        wrong = np.argwhere(~((value >= 0).all(-1) & (np.abs(value.sum(-1) - 1) <= CLOSE)))
        for at in wrong[:1]:
            where = f"{name}: {axes.format(*at)}".rstrip(": ")
            raise UserError(f"{where}: expected probabilities that add up to 1, got {value[tuple(at)].tolist()}")


def one_hot(mdp: FiniteMDP, horizon: int | None = None) -> LinearMDP:
    """A finite process as a linear one, a feature for each pair of state and action: d = S A.

    horizon: decisions, where the process names none. An action that does not exist counts as the first that does. The
    process is not discounted.
    """
    count = horizon or mdp.horizon
    if count is None:
        raise UserError("horizon: the process has no end; give a number of decisions")
    if mdp.discount != 1:
        raise UserError(f"discount: a linear process is not discounted, got {mdp.discount}; give the process 1")
    size, choices = mdp.reward.shape
    exists = np.ones((size, choices), bool) if mdp.allowed is None else mdp.allowed
    stands = np.where(exists, np.arange(choices), exists.argmax(1)[:, None])
    rows = (np.arange(size)[:, None] * choices + stands).ravel()
    table = mdp.transitions[rows]
    table = table.toarray() if sparse.issparse(table) else table
    features = np.eye(size * choices).reshape(size, choices, -1)
    weights = mdp.reward.ravel()[rows]
    return LinearMDP(
        features, np.broadcast_to(table, (count, *table.shape)), np.broadcast_to(weights, (count, len(weights))),
        mdp.start,
    )  # fmt: skip


@dataclass(frozen=True)
class SimulatedLinear(Tabular):
    """The simulated linear process of Liu and Xu (2024) and Tang, Liu and Xu (2025): go on, or gamble.

        f(a) = delta + <xi, a>,    xi = norm / 4 (1, 1, 1, 1),    a in {-1, 1}^4

    Three decisions. From x1 to x2, and from x2 to x3, by 1 - f, of which `leak` goes to x4; by f to x5. From x3 by
    1 - f to x4, by f to x5. x4 and x5 stay; x5 pays 1, and x2 and x3 pay f, from the second decision on. shift: q, the
    share of what came to x5 by the first decision that comes to x4 later; then nothing leaks at that decision.
    """

    delta: float = 0.3
    norm: float = 0.2
    leak: float = 0.001
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delta", "leak", "shift"):
            check_between(self, name, 0.0, 1.0)
        if not 0 <= self.norm <= min(self.delta, 1 - self.delta):
            raise refuse(self, "norm", self.norm, "f(a) must be a probability; give at most delta and 1 - delta")

    @property
    def horizon(self) -> int:
        return 3

    @functools.cached_property
    def linear(self) -> LinearMDP:
        """The process where data come from, and in `shifted` the factors that a policy meets."""
        signs = np.array(list(itertools.product((-1, 1), repeat=4)))
        f = self.delta + self.norm / 4 * signs.sum(1)
        features = np.zeros((5, 16, 4))
        for state in range(3):
            features[state, :, state], features[state, :, 3] = 1 - f, f
        features[3, :, 2] = features[4, :, 3] = 1
        leak, q = self.leak, self.shift
        stage = np.array([[0, 1 - leak, 0, leak, 0], [0, 0, 1 - leak, leak, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
        factors = np.repeat(stage[None], 3, 0)
        shifted = factors.copy()
        if q:
            shifted[0, 0], shifted[0, 3] = [0, 1, 0, 0, 0], [0, 0, 0, q, 1 - q]
        weights = np.zeros((3, 4))
        weights[1:, 3] = 1
        return LinearMDP(features, factors, weights, np.eye(5)[0], shifted)

    def finite(self) -> FiniteMDP:
        return self.linear.later().unrolled()
