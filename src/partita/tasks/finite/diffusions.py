"""Diffusions in one dimension, drawn exactly at the times of a grid, with values in closed form to learn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from partita.core.errors import UserError
from partita.core.part import Domain
from partita.core.task import Task
from partita.tasks.control._checks import check_finite, check_not_negative, check_positive, refuse

Array = NDArray[np.float64]
Function = Callable[[Any, Any], Any]  # of a time and a state, or a state and noise
CASES = ("linear", "square", "misfit")
TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A state in continuous time under a policy that is given, its value, and a linear family to look for it in.

        dX_t = b(t, X_t) dt + sigma(t, X_t) dW_t,    X_0 = start
        J(t, x) = E[int_t^T e^{-discount (s - t)} reward(s, X_s) ds + e^{-discount (T - t)} h(X_T) | X_t = x]
        J^theta(t, x) = base(t, x) + theta . features(t, x)

    All float64. move(dt): what takes x and noise to X after dt, exact in law where the noise is standard normal; times,
    states and noise broadcast. reward: per unit of time. features: (..., d), zero at the horizon T, where base and
    value are h. discount: per unit of time. best: the theta of J, None if J is not in the family.
    """

    move: Callable[[Any], Function]
    reward: Function
    value: Function
    base: Function
    features: Function
    horizon: float = 1.0
    discount: float = 0.0
    start: float = 0.0
    best: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.horizon) and self.horizon > 0):
            raise UserError(f"horizon: expected a time above 0, got {self.horizon}")
        if not (np.isfinite(self.discount) and self.discount >= 0):
            raise UserError(f"discount: expected a rate of at least 0, got {self.discount}")
        last = self.move(self.horizon)(self.start, np.array([-1.0, 0.0, 1.0]))
        if not np.allclose(self.features(self.horizon, last), 0):
            raise UserError(
                "features: expected 0 at the horizon, where the base is all that is paid; multiply by T - t"
            )
        if not np.allclose(self.base(self.horizon, last), self.value(self.horizon, last)):
            raise UserError("base: expected the value at the horizon, which is what is paid there")

    @property
    def size(self) -> int:
        """d, the number of features."""
        return int(self.features(0.0, self.start).shape[-1])

    def times(self, steps: int) -> Array:
        """The uniform grid, (steps + 1,), from 0 to the horizon."""
        return np.linspace(0.0, self.horizon, steps + 1)

    def paths(self, count: int, steps: int, generator: np.random.Generator) -> Array:
        """States at the times of the grid, (steps + 1, count)."""
        noise, found = generator.standard_normal((steps, count)), np.empty((steps + 1, count))
        found[0], move = self.start, self.move(self.horizon / steps)
        for i in range(steps):
            found[i + 1] = move(found[i], noise[i])
        return found

    def approximate(self, theta: Array, t: Any, x: Any) -> Array:
        """J^theta(t, x)."""
        return np.asarray(self.base(t, x) + self.features(t, x) @ theta)


@dataclass(frozen=True)
class Increments:
    """How much M of a linear family changes from each time of a grid to the next, K times on n paths.

        M_t = e^{-discount t} J^theta(t, X_t) + sum_{s < t} e^{-discount s} reward(s, X_s) mesh
        dM = base + slope . theta

    phi (K, n, d): the gradient of M in theta. slope (K, n, d), base (K, n).
    """

    phi: Array
    slope: Array
    base: Array
    mesh: float

    def of(self, theta: Array) -> Array:
        """dM, (K, n)."""
        return self.base + self.slope @ theta


def increments(problem: Diffusion, t: Any, x: Array, mesh: Any, after: Array) -> Increments:
    """How M changes from states x at t to those `after` a mesh, rewards taken at x; (..., d) and (...)."""
    now, then = np.exp(-problem.discount * np.asarray(t)), np.exp(-problem.discount * (t + mesh))
    phi = now[..., None] * problem.features(t, x)
    slope = then[..., None] * problem.features(t + mesh, after) - phi
    paid = problem.reward(t, x) * mesh - problem.base(t, x)
    return Increments(phi, slope, then * problem.base(t + mesh, after) + now * paid, mesh)


def sampled(problem: Diffusion, episodes: int, steps: int, generator: np.random.Generator) -> Increments:
    """The increments of M on paths that are drawn."""
    x, t = problem.paths(episodes, steps, generator), problem.times(steps)[:-1, None]
    return increments(problem, t, x[:-1], problem.horizon / steps, x[1:])


class Diffusive(Task):
    """Base of tasks that are diffusions: `made` gives the diffusion."""

    domain: ClassVar[Domain] = "control"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    abstract: ClassVar[bool] = True

    def made(self) -> Diffusion:
        """The diffusion of these settings."""
        raise NotImplementedError

    @functools.cached_property
    def diffusion(self) -> Diffusion:
        """The diffusion, made once."""
        return self.made()


def stacked(t: Any, x: Any, *columns: Any) -> Array:
    """Features, (..., d), from d columns that broadcast to the shape of t and x together."""
    shape = np.broadcast_shapes(np.shape(t), np.shape(x))
    return np.stack([np.broadcast_to(c, shape) for c in columns], -1)


def saturated(rate: float, time: Any) -> Any:
    """int_0^time e^{-rate u} du = (1 - e^{-rate time}) / rate, and time where the rate is 0."""
    return time if rate == 0 else -np.expm1(-rate * np.asarray(time)) / rate


@dataclass(frozen=True)
class Brownian(Diffusive):
    """A Brownian motion from 0 whose value has one parameter to find; u = T - t.

        linear:  r = x,    h = 0,    J = u x,            J^theta = theta u x
        square:  r = x^2,  h = 0,    J = u x^2 + u^2/2,  J^theta = u x^2 + theta u^2/2
        misfit:  r = 0,    h = x^2,  J = x^2 + u,        J^theta = x^2 + theta u^2

    In the first two theta is 1 at the value; the family of the third does not have it.
    """

    case: Literal["linear", "square", "misfit"] = "linear"
    horizon: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "horizon")
        if self.case not in CASES:
            raise refuse(self, "case", self.case, f"choose {', '.join(CASES)}")

    def made(self) -> Diffusion:
        end = self.horizon
        reward, value, base, feature = {
            "linear": (
                lambda t, x: x, lambda t, x: (end - t) * x, lambda t, x: 0 * x, lambda t, x: (end - t) * x,
            ),
            "square": (
                lambda t, x: x**2, lambda t, x: (end - t) * x**2 + (end - t) ** 2 / 2,
                lambda t, x: (end - t) * x**2, lambda t, x: (end - t) ** 2 / 2,
            ),
            "misfit": (
                lambda t, x: 0 * x, lambda t, x: x**2 + (end - t), lambda t, x: x**2, lambda t, x: (end - t) ** 2,
            ),
        }[self.case]  # fmt: skip
        return Diffusion(
            lambda dt: lambda x, noise: x + np.sqrt(dt) * noise, reward, value, base,
            lambda t, x: stacked(t, x, feature(t, x)), end, best=None if self.case == "misfit" else (1.0,),
        )  # fmt: skip


def quadratic(
    pull: float, noise: float, cost: float, final: float, discount: float, horizon: float, start: float
) -> Diffusion:
    """dX = -pull X dt + noise dW, reward -cost x^2 and at the end -final x^2; with u = T - t and m = 2 pull + discount

        J = -(A(u) x^2 + noise^2 B(u)),    A' = cost - m A,  A(0) = final,    B' = A - discount B,  B(0) = 0

    The features are x^2 (1 - e^{-m u}) / m, which what is known does not depend on, and B.
    """
    rate = 2 * pull + discount
    rise = cost - final * rate

    def parts(t: Any) -> tuple[Any, Any]:
        left = np.maximum(horizon - t, 0.0)
        settled = saturated(discount, left)
        lag = (settled - np.exp(-discount * left) * saturated(2 * pull, left)) / rate
        return saturated(rate, left), final * settled + rise * lag

    def value(t: Any, x: Any) -> Any:
        grown, spread = parts(t)
        return -(final + rise * grown) * x**2 - noise**2 * spread

    def features(t: Any, x: Any) -> Array:
        grown, spread = parts(t)
        return stacked(t, x, grown * x**2, spread)

    def move(dt: Any) -> Function:
        kept, spread = np.exp(-pull * dt), noise * np.sqrt(saturated(2 * pull, dt))
        return lambda x, drawn: kept * x + spread * drawn

    return Diffusion(
        move, lambda t, x: -cost * x**2, value, lambda t, x: -final * x**2, features, horizon, discount, start,
        best=(-rise, -(noise**2)),
    )  # fmt: skip


@dataclass(frozen=True)
class OrnsteinUhlenbeck(Diffusive):
    """A state that is pulled to 0, and pays for its distance from it.

    dX = -pull X dt + noise dW,    r = -x^2,    h = 0
    """

    pull: float = 1.0
    noise: float = 1.0
    discount: float = 0.5
    horizon: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "pull", "horizon")
        check_not_negative(self, "noise", "discount")
        check_finite(self, "start")

    def made(self) -> Diffusion:
        return quadratic(self.pull, self.noise, 1.0, 0.0, self.discount, self.horizon, self.start)


@dataclass(frozen=True)
class LinearQuadratic(Diffusive):
    """A linear system with quadratic costs under a linear policy.

    dX = (drift X + push U) dt + noise dW,    U = -gain X
    r = -(state_cost x^2 + control_cost u^2),    h = -final_cost x^2
    """

    drift: float = 0.5
    push: float = 1.0
    noise: float = 0.5
    gain: float = 1.0
    state_cost: float = 1.0
    control_cost: float = 0.5
    final_cost: float = 1.0
    discount: float = 0.0
    horizon: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "horizon")
        check_not_negative(self, "noise", "state_cost", "control_cost", "final_cost", "discount")
        check_finite(self, "drift", "push", "gain", "start")
        if abs(2 * (self.push * self.gain - self.drift) + self.discount) < TINY:
            raise refuse(self, "gain", self.gain, "2 (push gain - drift) + discount must not be 0; change it a little")

    def made(self) -> Diffusion:
        cost = self.state_cost + self.control_cost * self.gain**2
        pull = self.push * self.gain - self.drift
        return quadratic(pull, self.noise, cost, self.final_cost, self.discount, self.horizon, self.start)


def call_price(left: Any, x: Any, strike: float, rate: float, volatility: float) -> Any:
    """The price of a European call (Black and Scholes, 1973) with `left` years to go.

        x N(d) - owed N(d - s),    d = ln(x / owed) / s + s / 2,    s = volatility sqrt(left)

    owed is strike e^{-rate left}, N the normal distribution.
    """
    owed, s = strike * np.exp(-rate * np.asarray(left)), np.maximum(volatility * np.sqrt(left), 1e-12)
    d = np.log(x / owed) / s + s / 2
    return x * ndtr(d) - owed * ndtr(d - s)


@dataclass(frozen=True)
class BlackScholes(Diffusive):
    """A stock and a European call on it, where nothing can be earned without risk.

        dX = rate X dt + volatility X dW,    r = 0,    h = max(x - strike, 0),    discount = rate

    The family mixes prices at the volatilities of `basis`, with weights that add up to 1: the first has what theta
    leaves. It has the value if the volatility is among them.
    """

    rate: float = 0.05
    volatility: float = 0.2
    strike: float = 1.0
    horizon: float = 1.0
    start: float = 1.0
    basis: tuple[float, ...] = (0.1, 0.2, 0.4)

    def __post_init__(self) -> None:
        check_positive(self, "volatility", "strike", "horizon", "start")
        check_not_negative(self, "rate")
        if len(self.basis) < 2 or len(set(self.basis)) < len(self.basis) or not min(self.basis) > 0:
            raise refuse(self, "basis", self.basis, "give two or more different volatilities above 0")

    def made(self) -> Diffusion:
        def price(volatility: float) -> Function:
            return lambda t, x: call_price(np.maximum(self.horizon - t, 0.0), x, self.strike, self.rate, volatility)

        def move(dt: Any) -> Function:
            mean, spread = (self.rate - self.volatility**2 / 2) * dt, self.volatility * np.sqrt(dt)
            return lambda x, noise: x * np.exp(mean + spread * noise)

        base, others = price(self.basis[0]), [price(v) for v in self.basis[1:]]
        best = tuple(float(v == self.volatility) for v in self.basis[1:])
        return Diffusion(
            move, lambda t, x: 0.0 * x, price(self.volatility), base,
            lambda t, x: stacked(t, x, *(p(t, x) - base(t, x) for p in others)), self.horizon, self.rate, self.start,
            best=best if self.volatility in self.basis else None,
        )  # fmt: skip
