"""A linear regulator: quadratic cost, Gaussian policies, and their values in closed form."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are
from torch import Tensor

from partita.core.spaces import Box, Space
from partita.tasks.control._checks import check_finite, check_positive, refuse
from partita.tasks.control._draws import constant, normal
from partita.tasks.control.base import Native

Array = NDArray[np.float64]
HUGE = 1e9  # entries of policies from here on count as without bound


@dataclass(frozen=True, eq=False)
class Regulator:
    """A linear state that is to be held near 0, from a standard normal start.

        x' = A x + B u,    r = -(|x|^2 + price |u|^2)

    A (n, n), B (n, m), discount in (0, 1). A policy u ~ N(theta x, sigma^2) is theta (m, n); many are (R, m, n).
    """

    A: Array
    B: Array
    price: float
    discount: float

    def values(self, theta: Array, sigma: float) -> Array:
        """J of every policy, without end, (R,); -inf where the discounted state, or theta, is without bound.

        P = I + price theta' theta + discount M' P M,    M = A + B theta
        J = -tr P - sigma^2 (price m + discount tr B' P B) / (1 - discount)
        """
        runs, m, n = theta.shape
        bounded = np.asarray((np.abs(theta) < HUGE).all((1, 2)))
        theta = np.where(bounded[:, None, None], theta, 0.0)
        moved = self.A + self.B @ theta
        stable = bounded & (self.discount * np.abs(np.linalg.eigvals(moved)).max(1) ** 2 < 1)
        theta, moved = theta * stable[:, None, None], moved * stable[:, None, None]
        cost = np.eye(n) + self.price * theta.transpose(0, 2, 1) @ theta
        double = np.einsum("rki,rlj->rijkl", moved, moved).reshape(runs, n * n, n * n)
        ahead = np.linalg.solve(np.eye(n * n) - self.discount * double, cost.reshape(runs, n * n, 1))
        ahead = ahead.reshape(runs, n, n)
        noise = self.price * m + self.discount * np.einsum("nm,rnk,km->r", self.B, ahead, self.B)
        found = -np.trace(ahead, axis1=1, axis2=2) - sigma**2 * noise / (1 - self.discount)
        return np.where(stable, found, -np.inf)

    def best(self) -> Array:
        """The best theta, (m, n), of any sigma, by the Riccati equation."""
        root, m = math.sqrt(self.discount), self.B.shape[1]
        ahead = solve_discrete_are(root * self.A, root * self.B, np.eye(len(self.A)), self.price * np.eye(m))
        right = self.discount * self.B.T @ ahead
        return np.asarray(-np.linalg.solve(self.price * np.eye(m) + right @ self.B, right @ self.A))


def path(problem: Regulator, theta: Array, sigma: float, start: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Trajectories of R policies u = theta x + sigma noise: x (H, R, n), scores (H, R, m), discounted reward-to-go.

        score_t = noise_t / sigma,    togo_t = sum_{h >= t} discount^h r_h      (H, R)

    start: (R, n). noise: (H, R, m), standard normal.
    """
    length, runs, _ = noise.shape
    states, reward, x = np.empty((length, *start.shape)), np.empty((length, runs)), start
    closed = (problem.A + problem.B @ theta).transpose(0, 2, 1)
    pushed = sigma * noise @ problem.B.T
    for h in range(length):
        states[h] = x
        x = (x[:, None] @ closed)[:, 0] + pushed[h]
    actions = np.einsum("rmn,hrn->hrm", theta, states) + sigma * noise
    reward = -((states**2).sum(2) + problem.price * (actions**2).sum(2))
    reward *= problem.discount ** np.arange(length)[:, None]
    return states, noise / sigma, reward[::-1].cumsum(0)[::-1]


@dataclass(frozen=True)
class LinearRegulator(Native):
    """Hold a point in the plane that turns and decays near 0 by pushing it, in discrete time.

    x' = [[decay, turn], [-turn, decay]] x + gain u, from a standard normal start; pays -(|x|^2 + price |u|^2).
    Observation: x. Never terminated.
    """

    decay: float = 0.8
    turn: float = 0.2
    gain: float = 0.5
    price: float = 0.1
    discount: float = 0.8
    max_steps: int = 20

    def __post_init__(self) -> None:
        check_finite(self, "decay", "turn")
        check_positive(self, "gain", "price", "max_steps")
        if not 0 < self.discount < min(1.0, 1 / max(self.decay**2 + self.turn**2, 1e-300)):
            raise refuse(self, "discount", self.discount, "give one above 0, below 1 and 1 / (decay^2 + turn^2)")

    @functools.cached_property
    def regulator(self) -> Regulator:
        """The problem, made once."""
        moves = np.array([[self.decay, self.turn], [-self.turn, self.decay]])
        return Regulator(moves, self.gain * np.eye(2), self.price, self.discount)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def action_space(self) -> Space:
        return Box(2, (-math.inf,) * 2, (math.inf,) * 2)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Standard normal, (n, 2)."""
        return normal((n, 2), 1.0, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One move; `action` is (n, 2)."""
        reward = -(state.square().sum(1) + self.price * action.square().sum(1))
        moves = constant((self.decay, -self.turn, self.turn, self.decay), state).view(2, 2)
        return state @ moves + self.gain * action, reward, torch.zeros_like(reward, dtype=torch.bool)
