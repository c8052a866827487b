"""Linear bandits, and dynamical ones: what a choice pays may come later, by way of a hidden state."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partita.core.errors import UserError
from partita.core.spaces import Discrete, Space
from partita.tasks.control._checks import check_between, check_not_negative, check_positive, refuse
from partita.tasks.control.base import Native

Array = NDArray[np.float64]
POWERS = 1000  # of A, that are looked at for how much it enlarges before it forgets
CORNERS = tuple(sorted(itertools.permutations((1.0, 0.5, 0.0))))
BANDITS: dict[str, tuple[list[list[float]], list[list[float]], list[float], list[float]]] = {  # A, B, omega, theta
    "synthetic": (
        [[0.2, 0, 0], [0, 0, 0], [0, 0, 0.1]], [[0.45, 0, 0], [0, 0, 0], [0, 0, 0.1]], [1, 0, 0.1], [0, 0.5, 0.1],
    ),
    "real": (
        [[0.38, 0.33, 0.6], [0.07, 0.76, -0.54], [0.18, 0.34, 0.05]],
        [[0.14, 0.34, -0.05], [-0.17, 0.03, -0.01], [0.04, -0.09, 0.17]], [-0.61, -0.04, -0.13], [0.13, 0.41, 0.02],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What a learner is told of a bandit: bounds on norms of theta, omega, B, u and x, and how A forgets.

    ||A^k|| <= phi rho^k
    """

    theta: float
    omega: float
    b: float
    u: float
    x: float
    rho: float
    phi: float
    sigma: float

    @property
    def norm(self) -> float:
        """A bound on ||h||: theta + omega b phi / (1 - rho)."""
        return self.theta + self.omega * self.b * self.phi / (1 - self.rho)

    @property
    def noise(self) -> float:
        """The scale of the noise of a reward, the state's included: sigma sqrt(1 + (omega phi)^2 / (1 - rho^2))."""
        return self.sigma * math.sqrt(1 + (self.omega * self.phi) ** 2 / (1 - self.rho**2))

    @property
    def bias(self) -> float:
        """How far a reward can be from that of a choice held for ever: u omega phi (u b / (1 - rho) + x)."""
        return self.u * self.omega * self.phi * (self.u * self.b / (1 - self.rho) + self.x)


class Block(NamedTuple):
    """What rounds with one choice do, as one affine map: of the state before, the arm, and standard normal numbers.

        (x after, last reward, sum of rewards) = carry x + brings[arm] + spread z

    carry (n + 2, n), brings (K, n + 2), spread (n + 2, n + 2).
    """

    carry: Array
    brings: Array
    spread: Array


@dataclass(frozen=True, eq=False)
class LinearBandit:
    """Arms that are vectors u, and rewards y that are linear in them and in a hidden state x; all float64.

        y_t = <omega, x_t> + <theta, u_t> + sigma N(0, 1)
        x_{t+1} = A x_t + B u_t + sigma N(0, I),    x_1 = 0

    arms: (K, d). theta: (d,). A: (n, n), spectral radius below 1. B: (n, d). omega: (n,). n = 0, without these three,
    is a linear bandit. Whoever holds a choice is paid, in the long run and on average, h = theta + B' (I - A')^-1 omega
    times it.
    """

    arms: Array
    theta: Array
    A: Array = field(default_factory=lambda: np.zeros((0, 0)))
    B: Array = field(default_factory=lambda: np.zeros((0, 0)))
    omega: Array = field(default_factory=lambda: np.zeros(0))
    sigma: float = 0.01

    def __post_init__(self) -> None:
        for name in ("arms", "theta", "A", "B", "omega"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))
        if not self.B.size and not self.A.size:
            object.__setattr__(self, "B", np.zeros((0, self.arms.shape[-1] if self.arms.ndim else 0)))
        check(self)

    @functools.cached_property
    def radius(self) -> float:
        """The spectral radius of A, 0 without a state."""
        return float(np.abs(np.linalg.eigvals(self.A)).max(initial=0.0))

    @functools.cached_property
    def h(self) -> Array:
        """What one unit of each coordinate of a choice pays in the long run, (d,)."""
        return self.theta + self.B.T @ np.linalg.solve(np.eye(len(self.A)) - self.A.T, self.omega)

    @functools.cached_property
    def values(self) -> Array:
        """J(u) = <h, u> of every arm, (K,): the mean reward where it is held."""
        return self.arms @ self.h

    @functools.cached_property
    def gaps(self) -> Array:
        """How much less than the best every arm pays, (K,)."""
        return self.values.max() - self.values

    def known(self, rho: float | None = None) -> Known:
        """The bounds, as tight as they are; rho: a bound on the spectral radius in its place.

        Where rho is below the radius, phi is that of the radius.
        """
        rho = self.radius if rho is None else rho
        b, u = float(np.linalg.norm(self.B, 2)) if self.B.size else 0.0, float(np.linalg.norm(self.arms, axis=1).max())
        phi = enlarged(self.A, max(rho, self.radius))
        return Known(
            theta=float(np.linalg.norm(self.theta)), omega=float(np.linalg.norm(self.omega)), b=b, u=u,
            x=phi * b * u / (1 - rho), rho=rho, phi=phi, sigma=self.sigma,
        )  # fmt: skip

    def block(self, rounds: int) -> Block:
        """The law of so many rounds with one choice."""
        n = len(self.A)
        step, power = np.zeros((n + 2, n + 2)), np.eye(n + 2)
        step[:n, :n], step[n, :n], step[n + 1, :n], step[-1, -1] = self.A, self.omega, self.omega, 1.0
        gain = np.vstack([self.B, self.theta, self.theta])
        noise = np.eye(n + 2)
        noise[n + 1] = noise[n]
        noise[:, n + 1] = 0.0
        into, spread = np.zeros_like(gain), np.zeros_like(step)
        for _ in range(rounds):
            into += power @ gain
            spread += (power @ noise) @ (power @ noise).T
            power = power @ step
        size, axes = np.linalg.eigh(spread)
        return Block(power[:, :n], self.arms @ into.T, self.sigma * axes * np.sqrt(size.clip(min=0)))


def enlarged(a: Array, rho: float) -> float:
    """phi = max_k ||A^k|| / rho^k, k >= 0; UserError where there is none."""
    if not a.any():
        return 1.0
    power, norms = np.eye(len(a)), [1.0]
    for _ in range(POWERS if rho > 0 else 0):
        power = power @ a / rho
        norms.append(float(np.linalg.norm(power, 2)))
    half = len(norms) // 2
    if rho == 0 or max(norms[half:]) > 1.1 * max(norms[:half]):
        raise UserError(f"A: no multiple of {rho:.4g}^k bounds the norms of its powers; give a rho above its radius")
    return max(norms)


def check(bandit: LinearBandit) -> None:
    """Raise UserError, naming the first entry that is wrong."""
    if np.ndim(bandit.arms) != 2 or not bandit.arms.size:
        raise UserError(f"arms: expected a table, a row for each arm, got shape {np.shape(bandit.arms)}")
    d, n = bandit.arms.shape[1], len(np.atleast_1d(bandit.A))
    for name, shape in (("theta", (d,)), ("A", (n, n)), ("B", (n, d)), ("omega", (n,))):
        value = getattr(bandit, name)
        if value.shape != shape:
            raise UserError(f"{name}: expected shape {shape} for {n} states and arms in {d} dimensions, got "
                            f"{value.shape}")  # fmt: skip
    for name in ("arms", "theta", "A", "B", "omega"):
        value = getattr(bandit, name)
        for place in np.argwhere(~np.isfinite(value))[:1].tolist():
            raise UserError(f"{name}{place}: expected a finite number, got {value[tuple(place)]}")
    if not 0 <= bandit.sigma < math.inf:
        raise UserError(f"sigma: expected a finite number of at least 0, got {bandit.sigma}")
    eigenvalues = np.linalg.eigvals(bandit.A) if n else np.zeros(0)
    for value in eigenvalues[np.abs(eigenvalues) >= 1][:1]:
        raise UserError(f"A: expected a spectral radius below 1, got the eigenvalue {value:.4g}; the state would not "
                        "forget")  # fmt: skip


class Played(Native):
    """Base of tasks whose `make` gives a bandit. State: x, which is not seen (n, 1 of ones). Action: an arm."""

    abstract: ClassVar[bool] = True
    max_steps: int

    def make(self) -> LinearBandit:
        """The bandit."""
        raise NotImplementedError

    @functools.cached_property
    def bandit(self) -> LinearBandit:
        """The bandit, made once."""
        return self.make()

    @property
    def horizon(self) -> int:
        return self.max_steps

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def action_space(self) -> Space:
        return Discrete(len(self.bandit.arms))

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """States at rest, (n, states)."""
        return torch.zeros(n, len(self.bandit.A), device=device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One round; `action` is (n,) int64."""
        held = self.bandit
        a, b, omega, theta, arms = (
            torch.as_tensor(x, dtype=state.dtype, device=state.device)
            for x in (held.A, held.B, held.omega, held.theta, held.arms)
        )
        count, n = state.shape
        noise = held.sigma * torch.randn(count, n + 1, generator=generator, device=generator.device).to(state.device)
        u = arms[action]
        reward = state @ omega + u @ theta + noise[:, n]
        return state @ a.T + u @ b.T + noise[:, :n], reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return state.new_ones(state.shape[0], 1)


@dataclass(frozen=True)
class DynamicalBandit(Played):
    """The two bandits of Dynamical Linear Bandits (Mussi et al., 2023): three states, and budgets over three channels.

    kind: "synthetic", radius 0.2, where the choice that pays best in the long run pays less at once, or "real", radius
    0.67, as was identified from data of advertising. Arms: the orders of (1, 0.5, 0). The rewards of the authors' code
    are sums of three outputs with noise sigma each; here, as in their model, the reward has noise sigma.
    """

    kind: Literal["synthetic", "real"] = "synthetic"
    sigma: float = 0.01
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_not_negative(self, "sigma")
        if self.kind not in BANDITS:
            raise refuse(self, "kind", self.kind, f"choose {' or '.join(BANDITS)}")

    def make(self) -> LinearBandit:
        a, b, omega, theta = (np.array(x, float) for x in BANDITS[self.kind])
        return LinearBandit(np.array(CORNERS), theta, a, b, omega, self.sigma)


@dataclass(frozen=True)
class MemoryBandit(Played):
    """Bandits of any spectral radius with the same long-run rewards: a state remembers the first coordinate.

        x_{t+1} = radius x_t + coupling u_{t,1} + noise
        y_t = x_t + <h, u_t> - coupling / (1 - radius) u_{t,1} + noise

    coupling: None is radius (1 - radius) h_1, by which a moving average of u_1 is paid; then radius 0 is a linear
    bandit (but for the noise). arms: 0, the orders of (1, 0.5, 0), with h = (0.5625, 0.5, 1/9), or as many on a circle
    around 0, with h = (0.6, 0.8).
    """

    radius: float = 0.9
    coupling: float | None = None
    arms: int = 0
    sigma: float = 0.01
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_not_negative(self, "sigma", "radius", "arms")
        if self.radius >= 1:
            raise refuse(self, "radius", self.radius, "give less than 1")
        if self.coupling is not None and not math.isfinite(self.coupling):
            raise refuse(self, "coupling", self.coupling, "give a finite number")

    def make(self) -> LinearBandit:
        h = np.array([0.6, 0.8] if self.arms else [0.5625, 0.5, 1 / 9])
        angles = 2 * np.pi * np.arange(self.arms) / max(self.arms, 1)
        arms = np.stack([np.cos(angles), np.sin(angles)], 1) if self.arms else np.array(CORNERS)
        into = self.radius * (1 - self.radius) * h[0] if self.coupling is None else self.coupling
        first = np.eye(len(h))[:1]
        theta = h - into / (1 - self.radius) * first[0]
        return LinearBandit(arms, theta, np.array([[self.radius]]), into * first, np.ones(1), self.sigma)


@dataclass(frozen=True)
class SphereBandit(Played):
    """A linear bandit without a state: arms, and theta, drawn once from the unit sphere."""

    arms: int = 20
    dimension: int = 5
    sigma: float = 0.1
    drawn: int = 0
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "max_steps", "arms", "dimension")
        check_not_negative(self, "sigma", "drawn")
        check_between(self, "dimension", 1, 1000)

    def make(self) -> LinearBandit:
        rows = np.random.default_rng(self.drawn).standard_normal((self.arms + 1, self.dimension))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return LinearBandit(rows[1:], rows[0], sigma=self.sigma)
