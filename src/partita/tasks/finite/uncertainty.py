"""What the next state may be worth at the worst, when its distribution is known but roughly, for all rows at once.

A row q of a table of probabilities may be any p that is near it by some divergence D; either D has a limit, the radius,
or leaving q has a price:

    worst      = min_p p'v          with D(p, q) <= radius
    penalised  = min_p p'v + price D(p, q)

The one is the dual of the other, worst = max_{price >= 0} penalised(price) - price radius, so that each set needs but
one number a row to be found; here exactly, from sorted values, but for KL, whose number is found by bisection. Tables
are (R, S), dense or sparse: the rows of a finite process ((s, a)-rectangular), or the factors of a linear one
(d-rectangular).

Iyengar (2005), Nilim and El Ghaoui (2005); regularised as in Tang, Liu and Xu (2025), arXiv:2411.18612.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import sparse

from partita.core.errors import UserError
from partita.tasks.finite.mdp import Array, Table

Name = Literal["total_variation", "kl", "chi_squared", "wasserstein", "contamination"]
HALVINGS = 45  # of the range of log prices in which that of KL is


class Uncertainty:
    """By what a distribution may differ from the nominal one.

    table: (R, S), nominal rows q. values: (S,). Both methods give (R,). Total variation's and the penalised ones of KL
    and chi-squared take rows that are estimates too: their entries may be below 0, and need not add up to 1.
    """

    def worst(self, table: Table, values: Array, radius: float) -> Array:
        """The least expected value of all rows within the radius."""
        raise NotImplementedError

    def penalised(self, table: Table, values: Array, price: float) -> Array:
        """The least expected value and what the change of the row costs."""
        raise NotImplementedError


@dataclass(frozen=True)
class TotalVariation(Uncertainty):
    """Half of the absolute differences: the probability that is moved, to any state.

    D(p, q) = sum |p - q| / 2
    worst = max_eta E_q min(v, eta) - radius (eta - min v)_+
    penalised = E_q min(v, min v + price)
    """

    def worst(self, table: Table, values: Array, radius: float) -> Array:
        q, v = ascending(table, values)
        low = values.min()
        mass = q.sum(1)
        above = mass[:, None] - np.cumsum(q, 1) + q
        found = np.cumsum(q * v, 1) - q * v + v * above - radius * (v - low)
        return np.maximum(found.max(1), mass * np.where(mass > 0, low, min(low, 0.0)))

    def penalised(self, table: Table, values: Array, price: float) -> Array:
        return np.asarray(table @ np.minimum(values, values.min() + price))


@dataclass(frozen=True)
class KL(Uncertainty):
    """Kullback-Leibler divergence: probability moves within the states that the row reaches.

        D(p, q) = sum p ln(p / q)
        worst = max_{l >= 0} -l ln E_q e^(-v / l) - l radius
        penalised = -price ln E_q e^(-v / price)

    The best l is where the tilted row, p ~ q e^(-v / l), is at the radius. penalised is infinite where an estimate of
    the expectation is not above 0.
    """

    def worst(self, table: Table, values: Array, radius: float) -> Array:
        if radius == 0:
            return np.asarray(table @ values)
        q, x, low = risen(table, values)
        span = x.max(1)
        least, most = np.log(np.maximum(1e-12 * span, 1e-300)), np.log(np.maximum(span / radius, 1e-300))
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            price = np.exp(middle)
            tilted = q * np.exp(-x / price[:, None])
            mean = (tilted * x).sum(1) / tilted.sum(1)
            beyond = -mean / price - log_mean(q, x, price) > radius
            least, most = np.where(beyond, middle, least), np.where(beyond, most, middle)
        price = np.exp(most)
        return low + np.maximum(-price * log_mean(q, x, price) - price * radius, 0.0)

    def penalised(self, table: Table, values: Array, price: float) -> Array:
        q, x, low = risen(table, values)
        return low - price * log_mean(q, x, np.full(len(q), price))


@dataclass(frozen=True)
class ChiSquared(Uncertainty):
    """Squared differences over the nominal row: probability moves within the states that the row reaches.

        D(p, q) = sum (p - q)^2 / q
        worst = max_eta eta - sqrt((1 + radius) E_q (eta - v)_+^2)
        penalised = max_eta E_q w + (E_q w)^2 / (4 price) - E_q w^2 / (4 price),    w = min(v, eta)

    Between two sorted values the first is greatest at eta = a + sqrt(s2 / (m ((1 + radius) m - 1))), with m, a and
    s2 / m the mass, mean and variance of the values below, the second at ((E_q v; v < eta) + 2 price) / m.
    """

    def worst(self, table: Table, values: Array, radius: float) -> Array:
        if radius == 0:
            return np.asarray(table @ values)
        q, x, low = risen(table, values)
        m = np.cumsum(q, 1)
        safe = np.where(m > 0, m, 1.0)
        mean = np.cumsum(q * x, 1) / safe
        before = np.zeros_like(mean)
        before[:, 1:] = mean[:, :-1]
        s2 = np.cumsum(q * (m - q) / safe * (x - before) ** 2, 1)
        ends = x - np.sqrt((1 + radius) * (m * (x - mean) ** 2 + s2))
        room = (1 + radius) * m - 1
        inside = room > 0
        eta = mean + np.sqrt(s2 / np.where(inside, m * room, 1.0))
        upto = np.full_like(x, np.inf)
        upto[:, :-1] = x[:, 1:]
        inside &= (x <= eta) & (eta <= upto)
        between = mean - np.sqrt(s2 * np.maximum(room, 0.0) / safe)
        return low + np.maximum(ends, np.where(inside, between, -np.inf)).max(1)

    def penalised(self, table: Table, values: Array, price: float) -> Array:
        q, v = ascending(table, values)
        least = np.full((len(q), 1), min(float(values.min()), 0.0))
        q, v = np.hstack((0 * least, q)), np.hstack((least, v))
        first, second = np.cumsum(q * v, 1), np.cumsum(q * v * v, 1)
        above = q.sum(1, keepdims=True) - np.cumsum(q, 1)
        upto = np.hstack((v[:, 1:], v[:, -1:]))
        peak = (first + 2 * price) / np.where(above < 1, 1 - above, 1.0)
        found = []
        for eta in (v, np.clip(np.where(above < 1, peak, v), v, upto)):
            mean = first + above * eta
            found.append(mean + (mean**2 - second - above * eta**2) / (4 * price))
        return np.maximum(*found).max(1)


@dataclass(frozen=True, eq=False)
class Wasserstein(Uncertainty):
    """How far probability is moved on the average, in a metric of the states.

        D(p, q) = min sum_ij moved_ij d_ij    over ways to turn q into p
        worst = max_{l >= 0} E_q min_j (v_j + l d_ij) - l radius
        penalised = E_q min_j (v_j + price d_ij)

    metric: d, (S, S), 0 on the diagonal and nowhere below 0; None: |i - j|, states being in line. `worst` buys the
    moves that lower the value most for their length, until the radius is spent.
    """

    metric: Array | None = None

    def distances(self, size: int) -> Array:
        """d, (S, S)."""
        if self.metric is None:
            return np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
        d = np.asarray(self.metric, float)
        if d.shape != (size, size) or np.diag(d).any() or not (d >= 0).all():
            raise UserError(f"metric: expected {size} x {size} distances, 0 on the diagonal and nowhere below 0")
        return d

    def worst(self, table: Table, values: Array, radius: float) -> Array:
        nearest, state, length, rate = moves(self.distances(len(values)), values)
        base = np.asarray(table @ nearest)
        if not len(state):
            return base
        one_each = sparse.csr_array((length, (state, np.arange(len(state)))), shape=(len(values), len(state)))
        price = table @ one_each if sparse.issparse(table) else np.asarray(table)[:, state] * length
        cost, gain = ascending(price, -rate)
        spent = np.clip(radius - (np.cumsum(cost, 1) - cost), 0.0, cost)
        return base + (spent * gain).sum(1)

    def penalised(self, table: Table, values: Array, price: float) -> Array:
        return np.asarray(table @ (values + price * self.distances(len(values))).min(1))


@dataclass(frozen=True)
class Contamination(Uncertainty):
    """A share of the row may be anything (Huber).

    D(p, q) = the least R for which p = (1 - R) q + R (any distribution)
    worst = (1 - radius) E_q v + radius min v
    penalised = min(E_q v, min v + price)
    """

    def worst(self, table: Table, values: Array, radius: float) -> Array:
        share = min(radius, 1.0)
        return np.asarray((1 - share) * (table @ values) + share * values.min())

    def penalised(self, table: Table, values: Array, price: float) -> Array:
        return np.minimum(table @ values, values.min() + price)


def ascending(table: Table, values: Array) -> tuple[Array, Array]:
    """Rows and their values by rising value, (R, K) both; of a sparse row what it holds, then entries of weight 0."""
    order = np.argsort(values, kind="stable")
    if not sparse.issparse(table):
        rows = np.asarray(table)[:, order]
        return rows, np.broadcast_to(values[order], rows.shape)
    rows = sparse.csr_array(table)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    rows = sparse.csr_array((rows.data, rank[rows.indices], rows.indptr), shape=rows.shape)
    rows.sort_indices()
    count = np.diff(rows.indptr)
    held = np.arange(max(int(count.max()), 1)) < count[:, None]
    weight, value = np.zeros(held.shape), np.full(held.shape, values[order[-1]])
    weight[held], value[held] = rows.data, values[order][rows.indices]
    return weight, value


def risen(table: Table, values: Array) -> tuple[Array, Array, Array]:
    """Rows by rising value, how far each value is above the least that its row reaches, (R, K), and that, (R,).

    Where a row does not reach, what the value is above does not count: it is that of the state reached before.
    """
    q, v = ascending(table, values)
    low = v[np.arange(len(q)), (q != 0).argmax(1)]
    return q, np.maximum.accumulate(np.where(q != 0, v - low[:, None], 0.0), 1), low


def log_mean(q: Array, x: Array, price: Array) -> Array:
    """ln E_q e^(-x / price), with all digits where x / price is small; -inf where the mean is not above 0."""
    power = -x / price[:, None]
    small = q.sum(1) - 1 + (q * np.expm1(power)).sum(1)
    mean = np.where(small > -0.5, 1 + small, (q * np.exp(power)).sum(1))
    with np.errstate(divide="ignore"):
        return np.where(small > -0.5, np.log1p(np.maximum(small, -0.5)), np.log(np.maximum(mean, 0.0)))


def moves(distance: Array, values: Array) -> tuple[Array, Any, Array, Array]:
    """The moves that are ever worth their length: the lower hull of (d_ij, v_j) of each state i.

    Gives the values with what is at no distance, (S,), and, one entry a piece of a hull: the state, its length and by
    how much the value falls a unit of length.
    """
    worth = np.where(distance == 0, values, np.inf).min(1)
    nearest, at, states = worth, np.zeros(len(values)), np.arange(len(values))
    pieces: list[tuple[Any, Array, Array]] = []
    while True:
        length, fall = distance - at[:, None], worth[:, None] - values
        useful = (length > 0) & (fall > 0)
        rate = np.where(useful, fall, 0.0) / np.where(useful, length, 1.0)
        to, moving = rate.argmax(1), useful.any(1)
        if not moving.any():
            break
        pieces.append((states[moving], length[moving, to[moving]], rate[moving, to[moving]]))
        at, worth = np.where(moving, distance[states, to], at), np.where(moving, values[to], worth)
    if not pieces:
        return nearest, states[:0], at[:0], at[:0]
    state, long, rates = (np.concatenate(x) for x in zip(*pieces, strict=True))
    return nearest, state, long, rates


SETS: dict[str, Uncertainty] = {
    "total_variation": TotalVariation(), "kl": KL(), "chi_squared": ChiSquared(), "wasserstein": Wasserstein(),
    "contamination": Contamination(),
}  # fmt: skip


def named(field: str, name: str) -> Uncertainty:
    """The set of that name; UserError that names the field, where there is none."""
    if name not in SETS:
        raise UserError(f"{field}: expected one of {', '.join(get_args(Name))}, got {name!r}; choose one of them")
    return SETS[name]
