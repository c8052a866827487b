"""Policy Evaluation and Temporal-Difference Learning in Continuous Time and Space: A Martingale Approach (Jia and Zhou,
2022), arXiv:2108.06655.

J is the value of a policy in continuous time exactly if, beside J(T, .) = h, this is a martingale:

    M_t = e^{-discount t} J(t, X_t) + int_0^t e^{-discount s} r(s, X_s) ds

The mean-square TD error measures M's quadratic variation instead, and leads to a wrong value. What leads to the right
one, on a grid of mesh D, with dM_i = M_{i+1} - M_i and phi_i the gradient of M_i in theta:

    mean-square TD error       min E sum_i (dM_i)^2 / D
    martingale loss            min E sum_i D (M_K - M_i)^2 / 2
    martingale orthogonality   E sum_i xi_i dM_i = 0,    xi_i = phi_i, or sum_{j <= i} lam^{t_i - t_j} phi_j D

Solved by stochastic approximation the conditions are CTD(lam), by least squares CLSTD(lam), as a quadratic form the
generalised method of moments, CGTD. Discounts are kept inside of M, so that e^{-discount t} J is what is fitted, as if
there were none; CTD(1) is then the gradient of the martingale loss, path by path.

Of the paper itself only the abstract was at hand: definitions follow the authors' next work (arXiv:2111.11232); the
problems here and their numbers are our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from partita.core import registry
from partita.core.errors import UserError
from partita.core.limits import check_choice, check_count, check_share
from partita.core.paper import Claim, Figure, Identity, Paper
from partita.loops.exact import Exact
from partita.parts.evaluation import check_rates, met, moments, semi_gradient, solved, traces
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.diffusions import (
    Array,
    Brownian,
    Diffusion,
    Increments,
    OrnsteinUhlenbeck,
    increments,
    sampled,
)  # fmt: skip

PAPER = Paper(
    key="martingale_pe",
    title="Policy Evaluation and Temporal-Difference Learning in Continuous Time and Space: A Martingale Approach",
    arxiv="2108.06655", authors="Jia and Zhou", year=2022, kind="theory", changes=("solver",), loop="exact",
)  # fmt: skip

Metric = Literal["identity", "tests"]


def instruments(data: Increments, lam: float | None) -> Array:
    """xi (K, n, d), the test functions of CTD(lam); None: the slope of dM, that of the least mean-square TD error."""
    if lam is None:
        return data.slope
    return data.phi if lam == 0 else traces(data.mesh * data.phi, lam**data.mesh)


def expected(problem: Diffusion, steps: int, lam: float | None, nodes: int = 4) -> tuple[Array, Array]:
    """The matrix and vector of E sum_i xi_i dM_i = 0, by Gauss-Hermite quadrature.

    lam as in `instruments`. Exact for polynomials of degree 2 nodes - 1; the cost is steps^2 nodes^3.
    """
    noise, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight, t, mesh = weight / weight.sum(), problem.times(steps), problem.horizon / steps
    matrix, vector = np.zeros((problem.size, problem.size)), np.zeros(problem.size)
    for i in range(steps):
        later = t[i:-1] if lam else t[i : i + 1]
        share = mesh * lam ** (later - t[i]) if lam else np.ones(1)
        first = problem.move(t[i])(problem.start, noise)
        x = problem.move((later - t[i])[:, None, None])(first[:, None], noise)[..., None]
        data = increments(problem, later[:, None, None, None], x, mesh, problem.move(mesh)(x, noise))
        xi = data.slope if lam is None else np.broadcast_to(
            np.exp(-problem.discount * t[i]) * problem.features(t[i], first)[:, None, None], data.slope.shape
        )  # fmt: skip
        mass = np.einsum("j,a,b,c->jabc", share, weight, weight, weight)
        matrix += np.einsum("jabc,jabcp,jabcq->pq", mass, xi, data.slope)
        vector += np.einsum("jabc,jabcp,jabc->p", mass, xi, data.base)
    return matrix, vector


def root(problem: Diffusion, steps: int, lam: float | None) -> Array:
    """theta that a method finds on a grid: CTD(lam), the martingale loss (lam 1), or mean-square TD (None)."""
    matrix, vector = expected(problem, steps, lam)
    return solved(matrix, -vector)


@dataclass(frozen=True)
class MartingaleSolver(Solver):
    """Base of solvers that fit J^theta of a diffusion to paths.

    steps: K, of the grid. A sweep draws `episodes` paths; `batches` sweeps. Numbers "value", J^theta at the start, and
    "error", the root mean square of J^theta - J over 256 other paths. Table "theta".
    """

    abstract: ClassVar[bool] = True
    reads: ClassVar[str] = "diffusion"
    example: ClassVar[str] = "brownian"

    steps: int = 50
    episodes: int = 32
    batches: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "episodes", "batches"):
            check_count(f"solver.{name}", getattr(self, name))
        check_share("solver.lam", getattr(self, "lam", 0.0))

    def learn(self, drawn: Iterable[Increments], theta: Array) -> Iterator[Array]:
        """theta after each batch of paths."""
        raise NotImplementedError

    def __call__(self, problem: Diffusion, generator: np.random.Generator) -> Iterator[Solution]:
        x, t = problem.paths(256, self.steps, generator), problem.times(self.steps)[:, None]
        phi, wrong = problem.features(t, x), problem.base(t, x) - problem.value(t, x)
        drawn = (sampled(problem, self.episodes, self.steps, generator) for _ in range(self.batches))
        for theta in self.learn(drawn, np.zeros(problem.size)):
            value = float(problem.approximate(theta, 0.0, problem.start))
            error = float(np.sqrt(np.mean((wrong + phi @ theta) ** 2)))
            yield Solution({"value": value, "error": error}, {"theta": theta})


@dataclass(frozen=True)
class Descent(MartingaleSolver):
    """Base of solvers that move theta a step each batch, of size lr / batch^decay."""

    abstract: ClassVar[bool] = True

    lr: float = 1.0
    decay: float = 0.51

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates(self, "lr")

    def improved(self, theta: Array, data: Increments, lr: float) -> Array:
        """theta after a batch."""
        raise NotImplementedError

    def learn(self, drawn: Iterable[Increments], theta: Array) -> Iterator[Array]:
        for count, data in enumerate(drawn, 1):
            theta = self.improved(theta, data, self.lr / count**self.decay)
            yield theta


@dataclass(frozen=True)
class MeanSquareTD(Descent):
    """Down the mean-square TD error (Doya, 2000), D times its gradient, which stays as large as the mesh shrinks.

        theta <- theta - a sum_i dM_i grad dM_i

    a = lr / batch^decay, here and in the others; the mean of the paths.
    """

    def improved(self, theta: Array, data: Increments, lr: float) -> Array:
        return theta - lr * met(data.slope, data.of(theta))


@dataclass(frozen=True)
class MartingaleLoss(Descent):
    """Down the martingale loss, which is gradient Monte Carlo: each value towards all that was paid after it.

        theta <- theta + a sum_i D phi_i (M_K - M_i)

    It needs whole paths.
    """

    def improved(self, theta: Array, data: Increments, lr: float) -> Array:
        rest = data.of(theta)[::-1].cumsum(0)[::-1]
        return theta + lr * data.mesh * met(data.phi, rest)


@dataclass(frozen=True)
class CTD(Descent):
    """Continuous-time TD(lam): martingale orthogonality by stochastic approximation.

        theta <- theta + a sum_i xi_i dM_i,    xi_i = lam^D xi_{i-1} + D phi_i  (lam 0: phi_i)

    online: theta moves at every time of the grid, not at the end of the paths. lam is the decay in a unit of time.
    """

    lam: float = 0.0
    online: bool = False

    def improved(self, theta: Array, data: Increments, lr: float) -> Array:
        xi = instruments(data, self.lam)
        if self.online:
            return semi_gradient(theta, xi, data.slope, data.base, lr)
        return theta + lr * met(xi, data.of(theta))


@dataclass(frozen=True)
class CLSTD(MartingaleSolver):
    """The root of CTD(lam)'s conditions on all paths so far, without a step size.

        sum xi_i (base_i + slope_i . theta) = 0,    dM_i = base_i + slope_i . theta

    xi as in CTD.
    """

    lam: float = 0.0

    def learn(self, drawn: Iterable[Increments], theta: Array) -> Iterator[Array]:
        matrix, vector = np.zeros((len(theta), len(theta))), np.zeros(len(theta))
        for data in drawn:
            a, b = moments(instruments(data, self.lam), data.slope, data.base)
            matrix, vector = matrix + a, vector + b
            yield solved(matrix, -vector)


@dataclass(frozen=True)
class MartingaleGMM(MartingaleSolver):
    """The generalised method of moments on all paths so far, with the test functions of several lam at once.

        min m' W m / 2,    m = mean sum_i xi_i dM_i,    W = I or (mean sum_i xi_i xi_i')^-1

    metric: "identity" or "tests", which W is meant. One lam gives the root of CLSTD, whatever W.
    """

    lams: tuple[float, ...] = (0.0, 1.0)
    metric: Metric = "tests"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver.metric", self.metric, ("identity", "tests"))
        if not self.lams or not all(0 <= lam <= 1 for lam in self.lams) or len(set(self.lams)) < len(self.lams):
            raise UserError(f"solver.lams: expected different numbers from 0 to 1, got {self.lams}")

    def learn(self, drawn: Iterable[Increments], theta: Array) -> Iterator[Array]:
        size = len(self.lams) * len(theta)
        matrix, vector, squares = np.zeros((size, len(theta))), np.zeros(size), np.zeros((size, size))
        for data in drawn:
            xi = np.concatenate([instruments(data, lam) for lam in self.lams], -1)
            a, b = moments(xi, data.slope, data.base)
            matrix, vector = matrix + a, vector + b
            squares = squares + moments(xi, xi, data.base)[0]
            weighed = matrix.T if self.metric == "identity" else solved(squares, matrix).T
            yield solved(weighed @ matrix, -weighed @ vector)


@dataclass(frozen=True)
class CGTD(Descent):
    """The quadratic form by stochastic approximation on two time scales: GTD ("identity") and GTD2 ("tests").

        theta <- theta - a A' w,    w <- w + b (m - C w),    A = mean sum_i xi_i grad dM_i,  m = mean sum_i xi_i dM_i

    C is I, or mean sum_i xi_i xi_i' D where `metric` is "tests". b = fast / batch^decay; theta's step has the old w.
    """

    lam: float = 0.0
    metric: Metric = "tests"
    fast: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver.metric", self.metric, ("identity", "tests"))
        check_rates(self, "fast")

    def learn(self, drawn: Iterable[Increments], theta: Array) -> Iterator[Array]:
        w = np.zeros(len(theta))
        for count, data in enumerate(drawn, 1):
            xi = instruments(data, self.lam)
            a, b = moments(xi, data.slope, data.base)
            scale = np.eye(len(w)) if self.metric == "identity" else data.mesh * moments(xi, xi, data.base)[0]
            step = self.fast * (b + a @ theta - scale @ w)
            theta = theta - self.lr / count**self.decay * (a.T @ w)
            w = w + step / count**self.decay
            yield theta


RECIPES = {
    "mean_square_td": Exact(solver=MeanSquareTD()),
    "martingale_loss": Exact(solver=MartingaleLoss()),
    "ctd": Exact(solver=CTD()),
    "clstd": Exact(solver=CLSTD()),
    "martingale_gmm": Exact(solver=MartingaleGMM()),
    "cgtd": Exact(solver=CGTD()),
}


def fitted(data: Increments, lam: float | None) -> Array:
    """theta that meets the conditions of CTD(lam) on sampled paths; None: of the least mean-square TD error."""
    matrix, vector = moments(instruments(data, lam), data.slope, data.base)
    return solved(matrix, -vector)


def distance(
    arm: str, seed: int, task: str = "ornstein_uhlenbeck", steps: int = 64, episodes: int = 1000, **settings: float
) -> float:
    """How far from the value is what CLSTD(0) finds (treatment), or the least mean-square TD error (control).

    Both see the same paths, and need no step size. The root mean square over 500 other paths of 64 steps.
    """
    rng = np.random.default_rng(seed)
    problem = registry.part_class("task", task)(**settings).diffusion
    others, t = problem.paths(500, 64, rng), problem.times(64)[:, None]
    theta = fitted(sampled(problem, episodes, steps, rng), 0.0 if arm == "treatment" else None)
    return float(np.sqrt(np.mean((problem.approximate(theta, t, others) - problem.value(t, others)) ** 2)))


def mean_square_root(seed: int, steps: int = 100, episodes: int = 10_000) -> float:
    """theta of the least mean-square TD error on sampled paths of Brownian "linear", whose value has theta 1."""
    return float(fitted(sampled(Brownian().diffusion, episodes, steps, np.random.default_rng(seed)), None)[0])


def order(seed: int, meshes: tuple[int, ...] = (16, 32, 64, 128)) -> float:
    """The slope of log |theta - 1| in log D on Brownian "square"; of CTD(0), CTD(1/2), CTD(1) the farthest from 1."""
    problem, slopes = Brownian("square").diffusion, []
    for lam in (0.0, 0.5, 1.0):
        errors = [abs(root(problem, steps, lam)[0] - 1) for steps in meshes]
        slopes.append(float(-np.polyfit(np.log(meshes), np.log(errors), 1)[0]))
    return max(slopes, key=lambda slope: abs(slope - 1))


def disagreement(seed: int) -> float:
    """By how much one step of CTD(1) and one of the martingale loss differ at most, on single discounted paths."""
    rng, problem = np.random.default_rng(seed), OrnsteinUhlenbeck().diffusion
    gaps = []
    for _ in range(16):
        data, theta = sampled(problem, 1, 64, rng), rng.normal(size=problem.size)
        gap = CTD(lam=1.0, episodes=1).improved(theta, data, 1.0) - MartingaleLoss(episodes=1).improved(
            theta, data, 1.0
        )
        gaps.append(np.abs(gap).max())
    return float(max(gaps))


def best_fit(seed: int) -> float:
    """theta of the martingale loss where the family does not have the value, extrapolated to mesh 0."""
    coarse, fine = (root(Brownian("misfit").diffusion, steps, 1.0)[0] for steps in (64, 128))
    return float(2 * fine - coarse)


GRIDS = (4, 8, 16, 32, 64, 128)


def thetas(seed: int) -> dict[str, list[float]]:
    """theta on Brownian "linear" by the number of steps, from 1000 paths each."""
    rng = np.random.default_rng(seed)
    data = [sampled(Brownian().diffusion, 1000, steps, rng) for steps in GRIDS]
    arms: dict[str, float | None] = {"least mean-square TD error": None, "CLSTD(0)": 0.0}
    return {name: [float(fitted(d, lam)[0]) for d in data] for name, lam in arms.items()}


FIGURES = (
    Figure(
        title="What is learnt of Brownian motion, whose value has theta 1",
        x_name="steps of the grid",
        y_name="theta",
        x=GRIDS,
        measure=thetas,
        log=True,
        theory={"1.5 / (K + 1)": lambda k: 1.5 / (k + 1), "the value": lambda k: 1.0},
    ),
)

_LEAST: dict[str, Any] = {
    "treatment": "clstd", "control": "mean_square_td", "metric": "error of the value", "better": "lower",
    "experiment": distance,
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="martingale orthogonality, CLSTD(0), comes nearer to the value of an Ornstein-Uhlenbeck process than "
        "the least mean-square TD error, the more the finer the grid",
        dial=("steps", tuple((str(k), {"steps": k}) for k in (4, 16, 64, 256))), task="ornstein_uhlenbeck", **_LEAST,
    ),
    Claim(
        statement="it does so because of the process's noise: without any, both find the same",
        dial=("noise", tuple((str(s), {"noise": s}) for s in (0.0, 0.3, 1.0))), task="ornstein_uhlenbeck", **_LEAST,
    ),
    Claim(
        statement="it comes nearer to the price of an option, the more the finer the grid",
        dial=("steps", tuple((str(k), {"steps": k}) for k in (4, 16, 64, 256))), task="black_scholes",
        settings={"task": "black_scholes"}, **_LEAST,
    ),
    Identity(
        statement="on 100 steps of a Brownian motion the least mean-square TD error is at 1.5 / 101 of the value",
        measure=mean_square_root, expected=1.5 / 101, tolerance=0.05, relative=True, seeds=8,
    ),
    Identity(
        statement="where the family does not have the value, the martingale loss leads to its best mean-square fit",
        measure=best_fit, expected=1.25, tolerance=1e-3,
    ),
    Identity(
        statement="the errors of CTD(0), CTD(1/2) and the martingale loss fall with the mesh at rate 1",
        measure=order, expected=1.0, tolerance=0.05,
    ),
    Identity(
        statement="a step of CTD(1) is one down the martingale loss, path by path, with a discount",
        measure=disagreement, expected=0.0, tolerance=1e-10, seeds=8,
    ),
)  # fmt: skip
