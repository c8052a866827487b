"""Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies (Fatkhullin et al.,
2023), arXiv:2302.01734: N-PG-IGT and (N-)HARPG.

Ascent on G, the policy gradient of one trajectory, whose noise a moving average d takes away. An average of gradients
is of policies that are past; two corrections move it to the present one:

    d_t = (1 - eta_t) d_{t-1} + eta_t G(theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1}))          N-PG-IGT
    d_t = (1 - eta_t) (d_{t-1} + B(theta^) (theta_t - theta_{t-1})) + eta_t G(theta_t)                  (N-)HARPG
    theta_{t+1} = theta_t + gamma_t d_t / |d_t|      (HARPG: + gamma_t d_t)

B, the Hessian of one more trajectory, at a point drawn evenly between the last two. Where the Fisher information of all
policies is bounded away from 0, the best J is reached within T^(-2/5), and T^(-1/2), up to logarithms.

Gaussian policies of fixed variance on a linear regulator, `linear_regulator`, are such a class wherever they keep the
state bounded; scores are bounded in mean square only. (On all of R^d bounded rewards have no such class: at policies
near the worst the gradient is near 0, far from the best.) Of the paper only the abstract was at hand: algorithms,
steps and rates are after the authors' code and a public notebook on the theorems. That code has the eta before for
looking ahead, with which the terms do not cancel, a baseline, and another sign of one term of B.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from partita.core.limits import check_above, check_count, check_share
from partita.core.paper import Claim, Figure, Identity, Paper
from partita.loops.exact import Exact, solve
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.regulator import LinearRegulator, Regulator, path

PAPER = Paper(
    key="npg_igt_harpg",
    title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
    arxiv="2302.01734", authors="Fatkhullin et al.", year=2023, changes=("solver",), loop="exact",
)  # fmt: skip

Array = NDArray[np.float64]


class Oracle(Protocol):
    """What ascent asks of J at policies (R, m, n); answers have the same shape."""

    def gradient(self, theta: Array) -> Array:
        """An estimate of the gradient."""
        ...

    def change(self, before: Array, theta: Array) -> Array:
        """An estimate of the gradient at theta less that at `before`."""
        ...


def sampled_gradient(states: Array, scores: Array, togo: Array) -> Array:
    """The gradient of each trajectory, (R, m, n): sum_t togo_t score_t x_t'."""
    return np.einsum("hr,hrm,hrn->rmn", togo, scores, states, optimize=True)


def sampled_product(states: Array, scores: Array, togo: Array, sigma: float, v: Array) -> Array:
    """The Hessian of each trajectory times v, (R, m, n), in the memory of a gradient.

        B v = G <sum_t grad log pi_t, v> + Hess(Phi) v,    Hess(Phi) v = -sum_t togo_t (v x_t) x_t' / sigma^2

    G = grad Phi is the sampled gradient.
    """
    along = np.einsum("rmn,hrn->hrm", v, states)
    weighed = scores * (scores * along).sum((0, 2))[:, None] - along / sigma**2
    return np.einsum("hr,hrm,hrn->rmn", togo, weighed, states, optimize=True)


@dataclass(frozen=True)
class Sampler:
    """An oracle that draws a trajectory of every run for each answer; both kinds of answers have their own stream."""

    problem: Regulator
    sigma: float
    length: int
    streams: tuple[np.random.Generator, ...]

    def draw(self, theta: Array, generator: np.random.Generator) -> tuple[Array, Array, Array]:
        """Trajectories of policies."""
        runs, m, n = theta.shape
        start, noise = generator.standard_normal((runs, n)), generator.standard_normal((self.length, runs, m))
        return path(self.problem, theta, self.sigma, start, noise)

    def gradient(self, theta: Array) -> Array:
        return sampled_gradient(*self.draw(theta, self.streams[0]))

    def change(self, before: Array, theta: Array) -> Array:
        place = self.streams[1].random((len(theta), 1, 1))
        drawn = self.draw(place * theta + (1 - place) * before, self.streams[1])
        return sampled_product(*drawn, self.sigma, theta - before)


@dataclass(frozen=True)
class SampledAscent(Solver):
    """Base of ascent on trajectories: R `runs` at once, each from theta = 0, one or two trajectories an update.

        theta_{t+1} = theta_t + gamma_t d_t, or gamma_t d_t / |d_t|,    gamma_t = gamma_0 (2 / (t + 2))^gamma_power
        eta_t = eta_0 (2 / (t + 2))^eta_power

    d_0 = G(theta_0); where d = 0, theta stays. sigma: of the policy. length: H, after which trajectories are cut. A
    sweep is `updates` updates. Numbers, by closed form: "value", of the last run, "gap", the mean over runs of how far
    J is from the best, a run counting as the start where it is worse than that ("lost": the share of these);
    "trajectories", of each run. Table "theta" (R, m, n).
    """

    abstract: ClassVar[bool] = True
    reads: ClassVar[str] = "regulator"
    example: ClassVar[str] = "linear_regulator"
    trajectories: ClassVar[int] = 1
    gamma_0: float = 0.3
    gamma_power: float = 1.0
    eta_0: float = 1.0
    eta_power: float = 0.0
    normalised: bool = True
    sigma: float = 1.0
    length: int = 20
    runs: int = 16
    updates: int = 50

    def __post_init__(self) -> None:
        for name in ("gamma_0", "sigma"):
            check_above(f"solver.{name}", getattr(self, name))
        for name in ("gamma_power", "eta_power"):
            check_share(f"solver.{name}", getattr(self, name))
        check_share("solver.eta_0", self.eta_0, above=True)
        for name in ("length", "runs", "updates"):
            check_count(f"solver.{name}", getattr(self, name))

    def direction(self, d: Array, theta: Array, before: Array, eta: float, oracle: Oracle) -> Array:
        """d_t of d_{t-1}, theta_t and theta_{t-1}."""
        raise NotImplementedError

    def climb(self, theta: Array, oracle: Oracle) -> Iterator[tuple[Array, Array]]:
        """theta_{t+1} and d_t, t = 0, 1, ..."""
        before, d = theta, np.zeros_like(theta)
        for t in itertools.count():
            shrunk = 2 / (t + 2)
            gamma, eta = self.gamma_0 * shrunk**self.gamma_power, self.eta_0 * shrunk**self.eta_power
            d = oracle.gradient(theta) if t == 0 else self.direction(d, theta, before, eta, oracle)
            before, theta = theta, theta + gamma * (unit(d) if self.normalised else d)
            yield theta, d

    def __call__(self, problem: Regulator, generator: np.random.Generator) -> Iterator[Solution]:
        best = problem.best()
        begin = np.zeros((self.runs, *best.shape))
        top, bottom = (float(problem.values(x[None], self.sigma)[0]) for x in (best, begin[0]))
        oracle = Sampler(problem, self.sigma, self.length, tuple(generator.spawn(2)))
        with np.errstate(over="ignore", invalid="ignore"):
            for count, (theta, _) in enumerate(self.climb(begin, oracle), 1):
                if count % self.updates == 0:
                    values = problem.values(theta, self.sigma)
                    numbers = {
                        "value": float(values[-1]), "gap": top - float(values.clip(min=bottom).mean()),
                        "lost": float((values < bottom).mean()), "trajectories": float(count * self.trajectories),
                    }  # fmt: skip
                    yield Solution(numbers, {"theta": theta})


def unit(d: Array) -> Array:
    """Each (m, n) over its 2-norm; 0 stays 0."""
    norm = np.sqrt((d * d).sum((1, 2), keepdims=True))
    return np.divide(d, norm, out=np.zeros_like(d), where=norm > 0)


@dataclass(frozen=True)
class SampledGradient(SampledAscent):
    """REINFORCE, one trajectory an update: d is its gradient.

        d_t = G(theta_t) = sum_{t < H} (sum_{h=t}^{H-1} discount^h r_h) grad log pi(a_t|s_t)

    The steps are those that the authors gave it in their experiments.
    """

    gamma_power: float = 2 / 3
    normalised: bool = False

    def direction(self, d: Array, theta: Array, before: Array, eta: float, oracle: Oracle) -> Array:
        return oracle.gradient(theta)


@dataclass(frozen=True)
class ImplicitTransport(SampledAscent):
    """N-PG-IGT: gradients from ahead, so that their average is of where one is (Fatkhullin et al., 2023, algorithm 1).

        d_t = (1 - eta_t) d_{t-1} + eta_t G(theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1}))

    Where J is quadratic and G exact, d_t is the gradient at theta_t, for any eta. transport false: gradients from where
    one is, normalised momentum. With eta = 1 throughout it is normalised REINFORCE.
    """

    eta_power: float = 4 / 5
    transport: bool = True

    def direction(self, d: Array, theta: Array, before: Array, eta: float, oracle: Oracle) -> Array:
        ahead = theta + (1 - eta) / eta * (theta - before) if self.transport else theta
        return (1 - eta) * d + eta * oracle.gradient(ahead)


@dataclass(frozen=True)
class HessianAided(SampledAscent):
    """HARPG and, `normalised`, N-HARPG: the average is moved along by a Hessian (Fatkhullin et al., 2023, algorithm 2).

        d_t = (1 - eta_t) (d_{t-1} + B(theta^) (theta_t - theta_{t-1})) + eta_t G(theta_t)
        theta^ = q theta_t + (1 - q) theta_{t-1},    q ~ U[0, 1]

    Two trajectories an update. HARPG has gamma_power 1/2. With eta = 1 throughout they are (normalised) REINFORCE.
    """

    trajectories: ClassVar[int] = 2
    eta_power: float = 1.0

    def direction(self, d: Array, theta: Array, before: Array, eta: float, oracle: Oracle) -> Array:
        return (1 - eta) * (d + oracle.change(before, theta)) + eta * oracle.gradient(theta)


RECIPES = {
    "n_pg_igt": Exact(solver=ImplicitTransport(), sweeps=200),
    "n_harpg": Exact(solver=HessianAided(gamma_0=0.15), sweeps=100),
    "harpg": Exact(solver=HessianAided(gamma_0=0.004, gamma_power=0.5, normalised=False), sweeps=100),
    "normalised_momentum": Exact(solver=ImplicitTransport(transport=False), sweeps=200),
    "vanilla_pg": Exact(solver=SampledGradient(gamma_0=0.008), sweeps=200),
    "normalised_pg": Exact(solver=SampledGradient(normalised=True), sweeps=200),
}


METHODS: dict[str, SampledAscent] = {name: recipe.solver for name, recipe in RECIPES.items()}  # type: ignore[misc]


def reached(
    arm: str, seed: int, target: float, treatment: str = "n_pg_igt", control: str = "vanilla_pg", runs: int = 32,
    budget: int = 20_000, **settings: Any,
) -> dict[str, float]:  # fmt: skip
    """Trajectories of a run until J is within `target` of the best, on average over runs; `budget` if not by then.

    settings: of the arm's solver. Beside the value: the gap in the end, and the share of runs that are lost.
    """
    solver = METHODS[{"treatment": treatment, "control": control}[arm]].but(runs=runs, updates=25, **settings)
    for found in solver(LinearRegulator().regulator, np.random.default_rng(seed)):
        spent = found.numbers["trajectories"]
        if found.numbers["gap"] <= target or spent >= budget:
            break
    return {"value": min(spent, float(budget)), "gap": found.numbers["gap"], "lost": found.numbers["lost"]}


def slope(solver: SampledAscent, seed: int, updates: int = 10_000) -> float:
    """The slope of log gap in log t over the last ten-fold of updates, by least squares."""
    often = solver.but(runs=32, updates=updates // 100)
    climb = itertools.islice(often(LinearRegulator().regulator, np.random.default_rng(seed)), 100)
    gap = np.log([found.numbers["gap"] for found in climb][9:])
    return float(np.polyfit(np.log(np.arange(10, 101)), gap, 1)[0])


def slower_igt(seed: int) -> float:
    """By how much N-PG-IGT's slope misses -2/5."""
    return max(0.0, slope(METHODS["n_pg_igt"], seed) + 2 / 5)


def slower_harpg(seed: int) -> float:
    """By how much N-HARPG's slope misses -1/2."""
    return max(0.0, slope(METHODS["n_harpg"], seed) + 1 / 2)


@dataclass(frozen=True)
class Quadratic:
    """An oracle that is exact: J = -theta' bend theta / 2 + pull . theta for one run, theta (1, 1, n)."""

    bend: Array
    pull: Array

    def gradient(self, theta: Array) -> Array:
        return self.pull - theta @ self.bend

    def change(self, before: Array, theta: Array) -> Array:
        return (before - theta) @ self.bend


def strayed(seed: int, steps: int = 200) -> float:
    """How far d_t is, at most, from the gradient at theta_t of a random quadratic, with either correction."""
    generator, worst = np.random.default_rng(seed), 0.0
    root, pull = generator.normal(size=(4, 4)), generator.normal(size=4)
    oracle, place = Quadratic(root @ root.T, pull), np.zeros((1, 1, 4))
    for solver in (ImplicitTransport(gamma_0=1.0), HessianAided(gamma_0=1.0)):
        theta = place
        for following, d in itertools.islice(solver.climb(theta, oracle), steps):
            worst = max(worst, float(np.abs(d - oracle.gradient(theta)).max()))
            theta = following
    return worst


def expected(problem: Regulator, theta: Array, sigma: float, length: int, v: Array) -> tuple[Array, Array]:
    """E G and E B v of one policy of a state and an action of one number, (1, 1) each.

    By Gauss-Hermite quadrature over the first state and `length` actions, of which these are polynomials of degree 6.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = np.stack(np.meshgrid(*[nodes] * (length + 1))).reshape(length + 1, -1)
    chance = np.stack(np.meshgrid(*[weights / weights.sum()] * (length + 1))).prod(0).ravel()
    policies = np.broadcast_to(theta, (len(chance), 1, 1))
    drawn = path(problem, policies, sigma, grid[0][:, None], grid[1:, :, None])
    product = sampled_product(*drawn, sigma, np.broadcast_to(v, policies.shape))
    return np.einsum("r,rmn->mn", chance, sampled_gradient(*drawn)), np.einsum("r,rmn->mn", chance, product)


def biased(seed: int, length: int = 3) -> float:
    """How far E B v is from the difference of E G over a small step along v, relative, on a random line."""
    a, b, theta, v = np.random.default_rng(seed).normal(size=4)
    problem = Regulator(np.array([[a]]), np.array([[b]]), 0.3, 0.9)
    ahead, behind = (expected(problem, np.array([[theta + h * v]]), 0.7, length, v)[0] for h in (1e-5, -1e-5))
    product = expected(problem, np.array([[theta]]), 0.7, length, v)[1]
    return float(np.abs((ahead - behind) / 2e-5 - product).max() / np.abs(product).max())


_CLAIM: dict[str, Any] = {
    "task": "linear_regulator", "metric": "trajectories", "better": "lower", "kind": "ratio", "experiment": reached,
    "dial": ("target", tuple((str(gap), {"target": gap}) for gap in (1.0, 0.3, 0.1))),
}  # fmt: skip
_IGT = {"gamma_0": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)}
_VANILLA = {"gamma_0": (0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016)}

CLAIMS = (
    Claim(
        statement="N-PG-IGT comes within a target of the best J with fewer trajectories than REINFORCE, whose schedule "
        "is tuned too, the more so the tighter the target",
        treatment="n_pg_igt", control="vanilla_pg", search_treatment=_IGT,
        search_control={"gamma_0": (0.002, 0.004, 0.008, 0.016), "gamma_power": (1 / 2, 2 / 3)}, **_CLAIM,
    ),
    Claim(
        statement="and than REINFORCE with the authors' schedule",
        treatment="n_pg_igt", control="vanilla_pg", search_treatment=_IGT, search_control=_VANILLA, **_CLAIM,
    ),
    Claim(
        statement="and so does N-HARPG, its second trajectory being counted",
        treatment="n_harpg", control="vanilla_pg", settings={"treatment": "n_harpg"}, search_treatment=_IGT,
        search_control=_VANILLA, **_CLAIM,
    ),
    Claim(
        statement="N-PG-IGT needs fewer trajectories than the same without looking ahead, the more so the tighter the "
        "target",
        treatment="n_pg_igt", control="normalised_momentum", settings={"control": "normalised_momentum"}, search=_IGT,
        **_CLAIM,
    ),
    Identity(
        statement="the gap of N-PG-IGT falls at least as fast as T^(-2/5)", measure=slower_igt, expected=0.0,
        tolerance=0.0, seeds=8,
    ),
    Identity(
        statement="the gap of N-HARPG falls at least as fast as T^(-1/2)", measure=slower_harpg, expected=0.0,
        tolerance=0.0, seeds=8,
    ),
    Identity(
        statement="of a quadratic J that is known exactly, d_t is the gradient at theta_t: nothing of the past is left",
        measure=strayed, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="on average over trajectories B v is the Hessian times v", measure=biased, expected=0.0,
        tolerance=1e-6, seeds=8,
    ),
)  # fmt: skip

PLACES = tuple(float(x) for x in np.geomspace(200, 10_000, 18).round())


def gaps(seed: int) -> dict[str, Array]:
    """The mean gap of 16 runs at PLACES, by method, at its default steps."""
    found = {}
    for name in ("vanilla_pg", "n_pg_igt", "n_harpg"):
        solver = METHODS[name].but(updates=50)
        recipe = Exact(solver=solver, sweeps=round(PLACES[-1] / 50 / solver.trajectories))
        curves = solve(recipe, LinearRegulator().regulator, seed).curves
        found[name] = np.exp(np.interp(np.log(PLACES), np.log(curves["trajectories"]), np.log(curves["gap"])))
    return found


FIGURES = (
    Figure(
        title="How far from the best, over trajectories",
        x_name="trajectories of a run",
        y_name="gap",
        x=PLACES,
        measure=gaps,
        log=True,
        theory={"T^(-2/5), scaled": lambda t: 10 * t**-0.4, "T^(-1/2), scaled": lambda t: 10 * t**-0.5},
    ),
)
