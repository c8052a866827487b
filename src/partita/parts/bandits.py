"""Solvers of bandits that know nothing of a hidden state, many runs at a time, and the rounds that all solvers play."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from partita.core.errors import UserError
from partita.core.limits import check_above, check_choice, check_count
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.bandits import Array, LinearBandit

Arms = NDArray[np.int64]
Width = Callable[[int, Array], Any]  # of the confidence set, after t rounds, by the log-determinants of V / lambda
AHEAD = 512  # choices whose noise is drawn at once


class Learner(Protocol):
    """What a solver remembers of all runs."""

    def choose(self, t: int) -> Arms:
        """An arm for each run, (R,), after t rounds."""
        ...

    def see(self, arms: Arms, reward: Array) -> None:
        """Learn from the last reward of each run, (R,)."""
        ...

    def notes(self, bandit: LinearBandit, t: int) -> dict[str, NDArray[Any]]:
        """Tables about the runs, (R, ...), to be shown."""
        ...


@dataclass(frozen=True)
class Rounds(Solver):
    """Base of the solvers of bandits: plays `rounds` rounds in `runs` runs at once, in which all have their own noise.

        regret = sum_t J* - J(u_t),    shortfall = sum_t J* - y_t

    reports: solutions, at rounds that are evenly spread on a logarithmic scale. Numbers are means over runs: "round",
    "regret", "shortfall", "best", the share of rounds on a best arm. Tables, of each run: "regret", "plays", rounds by
    arm, and what the learner notes.
    """

    abstract: ClassVar[bool] = True
    reads: ClassVar[str] = "bandit"
    example: ClassVar[str] = "dynamical_bandit"
    rounds: int = 100_000
    runs: int = 8
    reports: int = 100

    def __post_init__(self) -> None:
        for name in ("rounds", "runs", "reports"):
            check_count(f"solver.{name}", getattr(self, name))

    def lasts(self, bandit: LinearBandit, choice: int) -> int:
        """How many rounds the choice of that number, from 1, is held."""
        return 1

    def learner(self, bandit: LinearBandit, generator: np.random.Generator) -> Learner:
        """A learner that has seen nothing."""
        raise NotImplementedError

    def __call__(self, problem: LinearBandit, generator: np.random.Generator) -> Iterator[Solution]:
        learner, rows = self.learner(problem, generator), np.arange(self.runs)
        states = len(problem.omega)
        x, paid, plays = np.zeros((self.runs, states)), np.zeros(self.runs), np.zeros((self.runs, len(problem.arms)))
        marks = iter(np.unique(np.geomspace(1, self.rounds, self.reports).round().astype(int)).tolist())
        t, choice, length, mark = 0, 0, 0, next(marks)
        while t < self.rounds:
            if choice % AHEAD == 0:
                noise = generator.standard_normal((AHEAD, self.runs, states + 2))
            held = min(self.lasts(problem, choice + 1), self.rounds - t)
            if held != length:
                length, block = held, problem.block(held)
            arms = learner.choose(t)
            after = x @ block.carry.T
            after += block.brings.take(arms, 0)
            after += noise[choice % AHEAD] @ block.spread.T
            x = after[:, :states]
            learner.see(arms, after[:, states])
            paid += after[:, states + 1]
            plays[rows, arms] += length
            t, choice = t + length, choice + 1
            if t >= mark:
                yield told(problem, t, paid, plays, learner)
                mark = next((m for m in marks if m > t), self.rounds)


def told(bandit: LinearBandit, t: int, paid: Array, plays: Array, learner: Learner) -> Solution:
    """The solution after t rounds."""
    regret, notes = plays @ bandit.gaps, learner.notes(bandit, t)
    numbers = {
        "round": float(t), "regret": float(regret.mean()), "shortfall": float(t * bandit.values.max() - paid.mean()),
        "best": float(plays[:, bandit.gaps <= 0].sum(1).mean() / t),
    }  # fmt: skip
    numbers |= {name: float(table.mean()) for name, table in notes.items() if table.ndim == 1}
    return Solution(numbers, {"regret": regret, "plays": plays.copy(), **notes})


class Ridge:
    """Ridge regression of rewards on arms in every run, and the arm that could be best.

        V = lam I + sum u u',    hhat = V^-1 sum u y,    argmax_u <hhat, u> + width ||u||_{V^-1}

    Ties go to the first arm. Each reward changes V^-1 and hhat by the formula of Sherman and Morrison.
    """

    def __init__(self, bandit: LinearBandit, runs: int, lam: float, width: Width) -> None:
        d = bandit.arms.shape[1]
        self.arms, self.width = bandit.arms, width
        self.squares = (self.arms[:, :, None] * self.arms[:, None, :]).reshape(-1, d * d).T.copy()
        self.inverse, self.estimate = np.tile(np.eye(d) / lam, (runs, 1, 1)), np.zeros((runs, d))
        self.flat = self.inverse.reshape(runs, d * d)
        self.grown, self.held = np.zeros(runs), np.ones(runs, bool)

    def choose(self, t: int) -> Arms:
        index = np.dot(self.flat, self.squares)
        np.sqrt(index, out=index)
        index *= self.width(t, self.grown)
        index += self.estimate @ self.arms.T
        return index.argmax(1)

    def see(self, arms: Arms, reward: Array) -> None:
        u = self.arms.take(arms, 0)
        along = (self.inverse @ u[:, :, None])[:, :, 0]
        scale = 1 + (along * u).sum(1)
        step = along / scale[:, None]
        self.inverse -= along[:, :, None] * step[:, None, :]
        self.estimate += step * (reward - (self.estimate * u).sum(1))[:, None]
        self.grown += np.log(scale)

    def notes(self, bandit: LinearBandit, t: int) -> dict[str, NDArray[Any]]:
        """estimate (R, d), and held: whether the confidence set held the true h at every report so far, (R,)."""
        wrong = self.estimate - bandit.h
        far = np.einsum("rd,rde,re->r", wrong, np.linalg.inv(self.inverse), wrong)
        self.held &= np.sqrt(far) <= np.ravel(self.width(t, self.grown))
        return {"estimate": self.estimate.copy(), "held": self.held.copy()}


Growth = Literal["det", "trace"]


@dataclass(frozen=True)
class LinUCB(Rounds):
    """Optimism in the face of uncertainty for linear bandits (Abbasi-Yadkori et al., 2011), as if nothing were delayed.

        width = sqrt(lam) S + R sqrt(2 log(1/delta) + log det(V / lam))

    S, R: the norm of h and the scale of noise that the problem makes known. lam, delta: None are log T and 1/T.
    growth: "det", as above; "trace", its bound d log(1 + t U^2 / (d lam)) in place of the log-determinant.
    """

    lam: float | None = None
    delta: float | None = None
    growth: Growth = "det"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam is not None:
            check_above("solver.lam", self.lam)
        if self.delta is not None and not 0 < self.delta < 1:
            raise UserError(f"solver.delta: expected a number between 0 and 1, got {self.delta}")
        check_choice("solver.growth", self.growth, get_args(Growth))

    @property
    def ridge(self) -> float:
        """lam, or log T."""
        return max(math.log(self.rounds), 1.0) if self.lam is None else self.lam

    def learner(self, bandit: LinearBandit, generator: np.random.Generator) -> Ridge:
        return Ridge(bandit, self.runs, self.ridge, self.width(bandit))

    def width(self, bandit: LinearBandit, rho: float | None = None) -> Width:
        """The width of the confidence set; rho: a bound on the spectral radius."""
        known, lam, d = bandit.known(rho), self.ridge, bandit.arms.shape[1]
        sure = 2 * math.log(self.rounds if self.delta is None else 1 / self.delta)
        level, noise, rate = math.sqrt(lam) * known.norm, known.noise, known.u**2 / (d * lam)
        if self.growth == "trace":
            return lambda t, grown: level + noise * math.sqrt(sure + d * math.log1p(t * rate))
        return lambda t, grown: (level + noise * np.sqrt(sure + grown))[:, None]


@dataclass(frozen=True)
class UCB1(Rounds):
    """The mean of each arm and what it lacks in certainty (Auer, Cesa-Bianchi and Fischer, 2002).

        argmax_a mean_a + 2 reach sqrt(2 log t / n_a)

    reach: rewards are taken to lie within reach of 0; None is twice the bound on |J| that the problem tells.
    """

    reach: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reach(self.reach)

    def learner(self, bandit: LinearBandit, generator: np.random.Generator) -> Counts:
        return Counts(self.runs, len(bandit.arms), reach_of(self.reach, bandit))


class Counts:
    """How often each arm was played, (R, K), and what it paid."""

    def __init__(self, runs: int, arms: int, reach: float) -> None:
        self.reach, self.rows = reach, np.arange(runs)
        self.count, self.total = np.zeros((runs, arms)), np.zeros((runs, arms))

    def choose(self, t: int) -> Arms:
        if t < self.count.shape[1]:
            return np.full(len(self.rows), t)
        return (self.total / self.count + 2 * self.reach * np.sqrt(2 * math.log(t) / self.count)).argmax(1)

    def see(self, arms: Arms, reward: Array) -> None:
        self.count[self.rows, arms] += 1
        self.total[self.rows, arms] += reward

    def notes(self, bandit: LinearBandit, t: int) -> dict[str, NDArray[Any]]:
        return {}


@dataclass(frozen=True)
class Exp3(Rounds):
    """Exponential weights for rewards that anyone may have chosen (Auer et al., 2002).

        p_a = (1 - gamma) w_a / sum w + gamma / K,    w_a <- w_a exp(gamma / K (y + reach) / (2 reach p_a))

    for the arm a that is drawn by p; y is cut to reach, which is as for `ucb1`. gamma: None is min(1, sqrt(K log K /
    ((e - 1) T))).
    """

    gamma: float | None = None
    reach: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reach(self.reach)
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise UserError(f"solver.gamma: expected a number above 0, at most 1, got {self.gamma}")

    def learner(self, bandit: LinearBandit, generator: np.random.Generator) -> Weights:
        k = len(bandit.arms)
        usual = min(1.0, math.sqrt(k * math.log(k) / ((math.e - 1) * self.rounds)))
        gamma = usual if self.gamma is None else self.gamma
        return Weights(self.runs, k, gamma, reach_of(self.reach, bandit), generator)


class Weights:
    """The logarithms of weights, (R, K)."""

    def __init__(self, runs: int, arms: int, gamma: float, reach: float, generator: np.random.Generator) -> None:
        self.gamma, self.reach, self.generator, self.rows = gamma, reach, generator, np.arange(runs)
        self.log, self.chance = np.zeros((runs, arms)), np.full((runs, arms), 1 / arms)

    def choose(self, t: int) -> Arms:
        weights = np.exp(self.log - self.log.max(1, keepdims=True))
        weights *= (1 - self.gamma) / weights.sum(1, keepdims=True)
        self.chance = weights + self.gamma / weights.shape[1]
        drawn = self.generator.random((len(self.rows), 1))
        return (self.chance.cumsum(1)[:, :-1] < drawn).sum(1)

    def see(self, arms: Arms, reward: Array) -> None:
        share = ((reward + self.reach) / (2 * self.reach)).clip(0, 1)
        self.log[self.rows, arms] += self.gamma / self.log.shape[1] * share / self.chance[self.rows, arms]

    def notes(self, bandit: LinearBandit, t: int) -> dict[str, NDArray[Any]]:
        return {"chance": self.chance.copy()}


def check_reach(reach: float | None) -> None:
    """Raise UserError unless it is a number above 0, or None."""
    if reach is not None:
        check_above("solver.reach", reach)


def reach_of(reach: float | None, bandit: LinearBandit) -> float:
    """`reach`, or twice the bound on |<h, u>|."""
    known = bandit.known()
    return 2 * known.norm * known.u if reach is None else reach
