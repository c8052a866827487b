"""Solvers that learn the values of a policy of a finite process from samples: temporal differences, linear features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from partita.core.errors import UserError
from partita.core.limits import check_above, check_choice, check_count, check_least, check_share
from partita.parts.planning import PolicyIteration, about
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.mdp import Array, FiniteMDP

POLICIES = ("uniform", "best")


@dataclass(frozen=True)
class Moves:
    """Steps of n episodes: features (L, n, d) and reward (L, n), so that errors are reward + slope . theta.

    slope (L, n, d): discount times the features that follow, less the features. ratio (L, n): of the chances that the
    policy and the behaviour have of the action.
    """

    features: Array
    slope: Array
    reward: Array
    ratio: Array


def traces(features: Array, decay: float, ratio: Array | None = None) -> Array:
    """Eligibility of past features, (L, n, d).

    z_i = ratio_i (decay z_{i-1} + features_i),    z_{-1} = 0
    """
    found, last = np.empty_like(features), np.zeros(features.shape[1:])
    for i, now in enumerate(features):
        last = decay * last + now
        if ratio is not None:
            last = ratio[i, :, None] * last
        found[i] = last
    return found


def moments(tests: Array, slope: Array, base: Array) -> tuple[Array, Array]:
    """Matrix (p, d) and vector (p,) of linear equations for theta, the mean of episodes.

        mean_n sum_i tests_i (base_i + slope_i . theta) = 0

    tests (L, n, p), slope (L, n, d), base (L, n).
    """
    flat = tests.reshape(-1, tests.shape[-1]).T / tests.shape[1]
    return flat @ slope.reshape(-1, slope.shape[-1]), flat @ base.ravel()


def met(tests: Array, errors: Array) -> Array:
    """How far equations are from being met, (d,): mean_n sum_i tests_i errors_i of tests (L, n, d), errors (L, n)."""
    return np.asarray(tests.reshape(-1, tests.shape[-1]).T @ errors.ravel() / errors.shape[1])


def solved(matrix: Array, right: Array) -> Array:
    """matrix^-1 right; UserError where the samples do not tell the parameters apart."""
    try:
        return np.asarray(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError:
        raise UserError("solver: the samples do not tell the features apart; give more steps or episodes") from None


def semi_gradient(theta: Array, tests: Array, slope: Array, base: Array, lr: float) -> Array:
    """theta after a step at each time in turn, of all episodes at once.

    theta <- theta + lr mean_n tests_i (base_i + slope_i . theta)
    """
    for z, g, c in zip(tests, slope, base, strict=True):
        theta = theta + lr * ((c + g @ theta) @ z) / len(c)
    return theta


def trajectories(
    mdp: FiniteMDP, policy: Array, episodes: int, length: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """States (length + 1, episodes), actions and rewards (length, episodes) of a policy (S, A) from the start."""
    chance = sparse.csr_array(mdp.transitions)
    first, upto = chance.indptr, np.cumsum(chance.data)
    before = np.concatenate(([0.0], upto))[first[:-1]]
    pairs = np.repeat(np.arange(len(first) - 1), np.diff(first))
    paid = mdp.reward.ravel()[pairs]
    if mdp.gains is not None:
        paid = np.asarray(sparse.csr_array(mdp.gains)[pairs, chance.indices]).ravel()
    acts = policy.cumsum(1)[:, :-1]
    states = np.empty((length + 1, episodes), np.int64)
    actions, reward = np.empty((length, episodes), np.int64), np.empty((length, episodes))
    states[0] = generator.choice(mdp.size, episodes, p=mdp.start)
    for i, now in enumerate(states[:-1]):
        actions[i] = (generator.random((episodes, 1)) >= acts[now]).sum(1)
        rows = now * mdp.choices + actions[i]
        drawn = np.searchsorted(upto, before[rows] + generator.random(episodes), side="right")
        drawn = np.clip(drawn, first[rows], first[rows + 1] - 1)
        states[i + 1], reward[i] = chance.indices[drawn], paid[drawn]
    return states, actions, reward


def uniform(mdp: FiniteMDP) -> Array:
    """The policy that takes each action that exists alike, (S, A)."""
    exists = np.ones(mdp.reward.shape) if mdp.allowed is None else mdp.allowed.astype(float)
    return exists / exists.sum(1, keepdims=True)


def best(mdp: FiniteMDP) -> Array:
    """The best policy, (S, A)."""
    *_, last = PolicyIteration()(mdp, np.random.default_rng(0))
    return np.eye(mdp.choices)[last.tables["policy"]]


@dataclass(frozen=True)
class Evaluation(Solver):
    """Base of solvers that learn values theta . features(s) of a policy from episodes that another may act in.

    policy: "uniform" or "best". behaviour: who acts, the "policy" itself or "uniform". features: groups of
    neighbouring states that share a value, None: each state has its own. A sweep draws `episodes` of `length` decisions
    from the start; `batches` sweeps. Number "error": how far the value of any state is from the exact one.
    """

    abstract: ClassVar[bool] = True

    policy: Literal["uniform", "best"] = "uniform"
    behaviour: Literal["policy", "uniform"] = "policy"
    features: int | None = None
    episodes: int = 32
    length: int = 50
    batches: int = 200

    def __post_init__(self) -> None:
        check_choice("solver.policy", self.policy, POLICIES)
        check_choice("solver.behaviour", self.behaviour, ("policy", "uniform"))
        for name in ("episodes", "length", "batches", *(["features"] if self.features is not None else [])):
            check_count(f"solver.{name}", getattr(self, name))

    def cannot(self, problem: FiniteMDP) -> str | None:
        if problem.horizon is not None:
            return f"it ends after {problem.horizon} decisions; give --discount, without end"
        if self.features is not None and self.features > problem.size:
            return f"it has {problem.size} states, for {self.features} features; give fewer --solver.features"
        return None

    def table(self, problem: FiniteMDP) -> Array:
        """Features of all states, (S, d)."""
        count = self.features or problem.size
        return np.eye(count)[np.arange(problem.size) * count // problem.size]

    def draw(self, problem: FiniteMDP, policy: Array, generator: np.random.Generator) -> Moves:
        """The steps of a sweep."""
        acting = policy if self.behaviour == "policy" else uniform(problem)
        states, actions, reward = trajectories(problem, acting, self.episodes, self.length, generator)
        now, table = states[:-1], self.table(problem)
        seen = table[states]
        slope = problem.discount * seen[1:] - seen[:-1]
        return Moves(seen[:-1], slope, reward, policy[now, actions] / acting[now, actions])

    def learn(self, drawn: Iterable[Moves], theta: Array, discount: float) -> Iterator[Array]:
        """theta after each batch of steps."""
        raise NotImplementedError

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        policy = uniform(problem) if self.policy == "uniform" else best(problem)
        exact, table = problem.evaluate(policy), self.table(problem)
        drawn = (self.draw(problem, policy, generator) for _ in range(self.batches))
        for theta in self.learn(drawn, np.zeros(table.shape[1]), problem.discount):
            values = table @ theta
            found = about(problem, values, policy, error=float(np.abs(values - exact).max()))
            yield Solution(found.numbers, {**found.tables, "theta": theta})


def check_rates(solver: Any, *fields: str) -> None:
    """Raise UserError unless step sizes are above 0 and their decay is not negative."""
    for name in fields:
        check_above(f"solver.{name}", getattr(solver, name))
    check_least("solver.decay", solver.decay)


@dataclass(frozen=True)
class TD(Evaluation):
    """Temporal differences with eligibility traces (Sutton, 1988).

        delta = r + discount theta . phi' - theta . phi
        z <- rho (discount lam z + phi),    theta <- theta + a delta z

    a = lr / batch^decay, the mean of the episodes at each decision; rho is the ratio of policy and behaviour.
    """

    lam: float = 0.0
    lr: float = 0.5
    decay: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("solver.lam", self.lam)
        check_rates(self, "lr")

    def learn(self, drawn: Iterable[Moves], theta: Array, discount: float) -> Iterator[Array]:
        for count, moves in enumerate(drawn, 1):
            z = traces(moves.features, discount * self.lam, moves.ratio)
            theta = semi_gradient(theta, z, moves.slope, moves.reward, self.lr / count**self.decay)
            yield theta


@dataclass(frozen=True)
class LSTD(Evaluation):
    """The fixed point of TD(lam) on all steps so far, without a step size (Bradtke and Barto, 1996; Boyan, 2002).

        (ridge I + sum z (phi - discount phi')') theta = sum z r,    z <- rho (discount lam z + phi)

    With a feature for each state it comes to the exact values, whatever lam.
    """

    lam: float = 0.0
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("solver.lam", self.lam)
        check_above("solver.ridge", self.ridge)

    def learn(self, drawn: Iterable[Moves], theta: Array, discount: float) -> Iterator[Array]:
        matrix, vector = self.ridge * np.eye(len(theta)), np.zeros(len(theta))
        for moves in drawn:
            a, b = moments(traces(moves.features, discount * self.lam, moves.ratio), moves.slope, moves.reward)
            matrix, vector = matrix - self.episodes * a, vector + self.episodes * b
            yield solved(matrix, vector)


@dataclass(frozen=True)
class GTD2(Evaluation):
    """Gradient temporal differences: down the projected Bellman error, whoever acts (Sutton et al., 2009).

        theta <- theta + a rho (phi - discount phi') (phi . w),    w <- w + b (rho delta - phi . w) phi

    a = lr / batch^decay, b = fast / batch^decay, the mean of the episodes at each decision; theta's step has the old w.
    """

    lr: float = 0.5
    fast: float = 1.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates(self, "lr", "fast")

    def learn(self, drawn: Iterable[Moves], theta: Array, discount: float) -> Iterator[Array]:
        w = np.zeros(len(theta))
        for count, moves in enumerate(drawn, 1):
            rate = count**-self.decay / self.episodes
            for f, g, r, rho in zip(moves.features, moves.slope, moves.reward, moves.ratio, strict=True):
                error, guess = rho * (r + g @ theta), f @ w
                theta = theta + self.lr * rate * self.direction(f, g, error, rho * guess)
                w = w + self.fast * rate * ((error - guess) @ f)
            yield theta

    def direction(self, features: Array, slope: Array, error: Array, guess: Array) -> Array:
        """The way of theta, summed over episodes; error and guess (n,) have been multiplied by rho."""
        return -guess @ slope


@dataclass(frozen=True)
class TDC(GTD2):
    """TD(0) with a correction that makes it a gradient of the projected Bellman error (Sutton et al., 2009).

        theta <- theta + a rho (delta phi - discount phi' (phi . w)),    w <- w + b (rho delta - phi . w) phi

    Step sizes as in GTD2. With w = 0 it is TD(0).
    """

    def direction(self, features: Array, slope: Array, error: Array, guess: Array) -> Array:
        return error @ features - guess @ (slope + features)
