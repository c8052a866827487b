"""The linear-quadratic regulator, whose best value is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partita.core.spaces import Box, Space
from partita.tasks.control._checks import check_not_negative, check_positive, refuse
from partita.tasks.control._draws import constant, normal, uniform
from partita.tasks.control.base import Native


@dataclass(frozen=True)
class Lqr(Native):
    """Linear dynamics with a quadratic cost; by default a double integrator stepped by 0.1 s.

    State and observation x (n, states), control u (n, controls), w standard normal (Kwakernaak and Sivan,
    1972, chapter 6):

        x_tp1 = A x_t + B u_t + noise w_t,      r_t = -(x_t' diag(q) x_t + u_t' diag(r) u_t)

    a, b: the rows of A (states x states) and B (states x controls), one after another.
    q, r: diagonals of the cost; one number stands for all. start: x_0 is uniform in [-start, start).
    Never terminated; controls are not bounded.
    """

    states: int = 2
    a: tuple[float, ...] = (1.0, 0.1, 0.0, 1.0)
    b: tuple[float, ...] = (0.0, 0.1)
    q: tuple[float, ...] = (1.0,)
    r: tuple[float, ...] = (0.1,)
    noise: float = 0.0
    start: float = 1.0
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "states", "max_steps", "start")
        check_not_negative(self, "noise")
        if len(self.a) != self.states**2:
            raise refuse(self, "a", self.a, f"give {self.states} x {self.states} numbers, row by row")
        if not self.b or len(self.b) % self.states:
            raise refuse(self, "b", self.b, f"give {self.states} rows, each with a number per control")
        for name, size in (("q", self.states), ("r", self.controls)):
            values = getattr(self, name)
            if len(values) not in (1, size):
                raise refuse(self, name, values, f"give one number or {size}")
        if not all(math.isfinite(v) for v in (*self.a, *self.b, *self.q, *self.r)):
            raise refuse(self, "a, b, q, r", (self.a, self.b, self.q, self.r), "give finite numbers")
        if min(self.q) < 0:
            raise refuse(self, "q", self.q, "give numbers of at least 0")
        if min(self.r) <= 0:
            raise refuse(self, "r", self.r, "give numbers above 0")

    @property
    def controls(self) -> int:
        """Size of the control vector."""
        return len(self.b) // self.states

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.states,)

    @property
    def action_space(self) -> Space:
        return Box(self.controls, (-math.inf,) * self.controls, (math.inf,) * self.controls)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Uniform in the cube of half-width `start`, (n, states)."""
        return uniform((n, self.states), -self.start, self.start, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step; `action` is (n, controls)."""
        action = action.to(state.dtype)
        a = constant(self.a, state).view(self.states, self.states)
        b = constant(self.b, state).view(self.states, self.controls)
        cost = (state * state * constant(self.q, state)).sum(1) + (action * action * constant(self.r, state)).sum(1)
        new = torch.addmm(state @ a.T, action, b.T)
        if self.noise:
            new = new + normal(tuple(new.shape), self.noise, generator, new.device)
        return new, -cost, torch.zeros_like(cost, dtype=torch.bool)

    def matrices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A, B, diag(q), diag(r) in float64."""
        n, m = self.states, self.controls
        return (
            np.array(self.a, np.float64).reshape(n, n),
            np.array(self.b, np.float64).reshape(n, m),
            np.diag(np.broadcast_to(np.array(self.q, np.float64), (n,))),
            np.diag(np.broadcast_to(np.array(self.r, np.float64), (m,))),
        )

    def cost_to_go(self, discount: float = 0.99) -> np.ndarray:
        """P of the discounted infinite-horizon problem, (states, states) float64.

        The solution of the discrete Riccati equation, found by scaling A and B with sqrt(discount):

            P = Q + d A'PA - d A'PB (R + d B'PB)^-1 d B'PA

        UserError when there is none (the system cannot be stabilised at this discount).
        """
        from scipy.linalg import solve_discrete_are

        if not 0.0 < discount <= 1.0:
            raise refuse(self, "discount", discount, "give a number above 0 and at most 1")
        a, b, q, r = self.matrices()
        try:
            return solve_discrete_are(math.sqrt(discount) * a, math.sqrt(discount) * b, q, r)
        except (np.linalg.LinAlgError, ValueError) as error:
            raise refuse(self, "a", self.a, f"no stabilising control exists: {error}") from error

    def optimal_gain(self, discount: float = 0.99) -> Tensor:
        """K of the best policy u = -K x for the discounted infinite horizon, (controls, states) float64."""
        return torch.from_numpy(self._gain(self.cost_to_go(discount), discount))

    def optimal_value(self, state: Tensor | None = None, discount: float = 0.99) -> Tensor:
        """V*(x) of the discounted infinite horizon, (n,) float64; without `state` its mean over x_0, ().

        V*(x) = -x'Px - noise^2 tr(P) d / (1 - d)
        """
        p = torch.from_numpy(self.cost_to_go(discount))
        spread = p.trace()
        if state is None:
            value = -spread * (self.start**2 / 3.0)
        else:
            value = -((state.double() @ p) * state.double()).sum(-1)
        if self.noise:
            value = value - spread * (self.noise**2 * discount / (1.0 - discount))
        return value

    def optimal_return(self) -> float:
        """Expected undiscounted return over `max_steps` of the best (time-dependent) policy.

        The Riccati recursion backwards from P_H = 0; with E[x_0 x_0'] = start^2 / 3 I:

            J = -tr(P_0) start^2 / 3 - noise^2 sum_{t=1}^{H-1} tr(P_t)
        """
        a, b, q, r = self.matrices()
        p, shaken = np.zeros_like(a), 0.0
        for _ in range(self.max_steps):
            shaken += self.noise**2 * float(np.trace(p))
            gain = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
            p = q + a.T @ p @ (a - b @ gain)
        return -float(np.trace(p)) * self.start**2 / 3.0 - shaken

    def _gain(self, p: np.ndarray, discount: float) -> np.ndarray:
        a, b, _, r = self.matrices()
        return np.linalg.solve(r + discount * b.T @ p @ b, discount * b.T @ p @ a)
