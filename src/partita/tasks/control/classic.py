"""The classic control problems as pure tensor functions: cart-pole, mountain car (two kinds), pendulum.

Constants, rewards, termination and time limits are those of Gymnasium's versions, named in each class; the
equations are given there. Every function keeps the dtype of the state, so that tests can run in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from partita.core.spaces import Box, Discrete, Space
from partita.tasks.control._checks import check_finite, check_positive, refuse
from partita.tasks.control._draws import constant, uniform
from partita.tasks.control.base import Native


@dataclass(frozen=True)
class Cartpole(Native):
    """Balance a pole on a cart by pushing left or right; +1 a step (Gymnasium `CartPole-v1`).

    State and observation (x, x', a, a'): position [m], angle [rad] and their rates. With force
    F = +-force, masses m (pole), M (both together) and half the pole's length l (Barto, Sutton and
    Anderson, 1983), stepped by the explicit Euler method:

        u   = (F + m l a'^2 sin a) / M
        a'' = (g sin a - u cos a) / (l (4/3 - m cos^2 a / M))
        x'' = u - m l a'' cos a / M

    Terminated when |x| > x_limit or |a| > angle_limit (degrees).
    """

    gravity: float = 9.8
    mass_cart: float = 1.0
    mass_pole: float = 0.1
    half_length: float = 0.5
    force: float = 10.0
    dt: float = 0.02
    x_limit: float = 2.4
    angle_limit: float = 12.0
    max_steps: int = 500

    def __post_init__(self) -> None:
        check_positive(self, "mass_cart", "mass_pole", "half_length", "force", "dt", "x_limit", "angle_limit")
        check_positive(self, "max_steps")
        check_finite(self, "gravity")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (4,)

    @property
    def action_space(self) -> Space:
        return Discrete(2)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """All four numbers uniform in [-0.05, 0.05), (n, 4)."""
        return uniform((n, 4), -0.05, 0.05, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step of `dt` seconds; `action` (n,) int64 is 0 (left) or 1 (right)."""
        total = self.mass_cart + self.mass_pole
        lever = self.mass_pole * self.half_length / total
        push = self.force / total
        _, x_dot, angle, angle_dot = state.unbind(1)
        cos, sin = angle.cos(), angle.sin()
        pushed = action.to(state.dtype) * (2 * push) - push
        u = torch.addcmul(pushed, angle_dot * angle_dot, sin, value=lever)
        inertia = (cos * cos).mul_(-self.half_length * self.mass_pole / total).add_(self.half_length * 4.0 / 3.0)
        angle_acc = torch.addcmul(sin * self.gravity, cos, u, value=-1.0).div_(inertia)
        x_acc = torch.addcmul(u, angle_acc, cos, value=-lever)
        state = torch.add(state, torch.stack((x_dot, x_acc, angle_dot, angle_acc), 1), alpha=self.dt)
        limits = constant((self.x_limit, math.inf, math.radians(self.angle_limit), math.inf), state)
        return state, state.new_ones(state.shape[0]), (state.abs() > limits).any(1)


@dataclass(frozen=True)
class MountainCar(Native):
    """Drive an underpowered car out of a valley with three actions; -1 a step (Gymnasium `MountainCar-v0`).

    State and observation (p, v); the action a in {0, 1, 2} pushes left, not at all, or right (Moore, 1990):

        v <- clip(v + force (a - 1) - gravity cos(3 p), -0.07, 0.07)
        p <- clip(p + v, -1.2, 0.6);   v <- 0 where p = -1.2 and v < 0

    Terminated when p >= 0.5 and v >= goal_velocity.
    """

    force: float = 0.001
    gravity: float = 0.0025
    goal_velocity: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "force", "max_steps")
        check_finite(self, "gravity", "goal_velocity")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def action_space(self) -> Space:
        return Discrete(3)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Position uniform in [-0.6, -0.4), at rest, (n, 2)."""
        return _valley_start(n, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step; `action` is (n,) int64."""
        state = _valley(state, (action - 1).to(state.dtype).mul_(self.force), self.gravity)
        position, velocity = state.unbind(1)
        terminated = (position >= 0.5) & (velocity >= self.goal_velocity)
        return state, state.new_full((state.shape[0],), -1.0), terminated


@dataclass(frozen=True)
class MountainCarContinuous(Native):
    """Mountain car with a force in [-1, 1]; effort costs, the goal pays (Gymnasium `MountainCarContinuous-v0`).

    Dynamics as `MountainCar` with push power * a; the reward of a step is

        r = 100 [p >= 0.45 and v >= goal_velocity] - 0.1 a^2

    The action is clipped before both are computed (Gymnasium charges for the action before clipping).
    """

    power: float = 0.0015
    gravity: float = 0.0025
    goal_velocity: float = 0.0
    max_steps: int = 999

    def __post_init__(self) -> None:
        check_positive(self, "power", "max_steps")
        check_finite(self, "gravity", "goal_velocity")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def action_space(self) -> Space:
        return Box(1, (-1.0,), (1.0,))

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Position uniform in [-0.6, -0.4), at rest, (n, 2)."""
        return _valley_start(n, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step; `action` is (n, 1)."""
        force = action[:, 0].to(state.dtype).clamp(-1.0, 1.0)
        state = _valley(state, force * self.power, self.gravity)
        position, velocity = state.unbind(1)
        terminated = (position >= 0.45) & (velocity >= self.goal_velocity)
        reward = torch.addcmul(terminated.to(state.dtype) * 100.0, force, force, value=-0.1)
        return state, reward, terminated


@dataclass(frozen=True)
class Pendulum(Native):
    """Swing a pendulum up and hold it there with a bounded torque (Gymnasium `Pendulum-v1`).

    State (a, w): angle from upright [rad] and its rate; observation (cos a, sin a, w). With torque
    u = clip(action, -2, 2) and the angle wrapped to [-pi, pi):

        r = -(a^2 + 0.1 w^2 + 0.001 u^2)
        w <- clip(w + (3 g / (2 l) sin a + 3 / (m l^2) u) dt, -8, 8);   a <- a + w dt

    Never terminated.
    """

    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0
    dt: float = 0.05
    max_torque: float = 2.0
    max_speed: float = 8.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "mass", "length", "dt", "max_torque", "max_speed", "max_steps")
        check_finite(self, "gravity")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (3,)

    @property
    def action_space(self) -> Space:
        return Box(1, (-self.max_torque,), (self.max_torque,))

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Angle uniform in [-pi, pi), rate in [-1, 1), (n, 2)."""
        return uniform((n, 2), -1.0, 1.0, generator, device) * _pendulum_spread(device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step of `dt` seconds; `action` is (n, 1)."""
        angle, speed = state.unbind(1)
        torque = action[:, 0].to(state.dtype).clamp(-self.max_torque, self.max_torque)
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        reward = -(wrapped * wrapped + 0.1 * (speed * speed) + 0.001 * (torque * torque))
        pull = 3.0 * self.gravity / (2.0 * self.length) * self.dt
        drive = 3.0 / (self.mass * self.length**2) * self.dt
        new_speed = (speed + pull * angle.sin() + drive * torque).clamp(-self.max_speed, self.max_speed)
        state = torch.stack((torch.add(angle, new_speed, alpha=self.dt), new_speed), 1)
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(1)
        return torch.stack((angle.cos(), angle.sin(), speed), 1)


@dataclass(frozen=True)
class Acrobot(Native):
    """Swing the tip of a two-link arm above a line with a torque at the joint between (Gymnasium `Acrobot-v1`).

    State (a, b, a', b'): angle of the first link from hanging, of the second relative to the first [rad], and
    rates; observation (cos a, sin a, cos b, sin b, a', b'). Links of length 1 and mass 1 with centre at 1/2
    and moment of inertia 1; torque u in {-1, 0, 1} (Sutton and Barto, 1998; `nips`: Sutton, 1996):

        d1 = 7/2 + cos b,   d2 = 5/4 + cos(b) / 2,   p2 = g sin(a + b) / 2
        p1 = -b'^2 sin(b) / 2 - a' b' sin b + 3 g sin(a) / 2 + p2
        b'' = (u + d2 p1 / d1 - a'^2 sin(b) / 2 - p2) / (5/4 - d2^2 / d1)      (nips: without a'^2)
        a'' = -(d2 b'' + p1) / d1

    One fourth-order Runge-Kutta step of `dt`, angles wrapped to [-pi, pi), rates clipped to 4 pi and 9 pi.
    The reward is -1 a step, 0 on the step that ends the episode: -cos a - cos(a + b) > 1.
    """

    gravity: float = 9.8
    dt: float = 0.2
    torque: float = 1.0
    dynamics: Literal["book", "nips"] = "book"
    max_steps: int = 500

    def __post_init__(self) -> None:
        check_positive(self, "dt", "torque", "max_steps")
        check_finite(self, "gravity")
        if self.dynamics not in ("book", "nips"):
            raise refuse(self, "dynamics", self.dynamics, "choose book or nips")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (6,)

    @property
    def action_space(self) -> Space:
        return Discrete(3)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """All four numbers uniform in [-0.1, 0.1), (n, 4)."""
        return uniform((n, 4), -0.1, 0.1, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step of `dt` seconds; `action` (n,) int64 is the torque plus one."""
        u = (action - 1).to(state.dtype).mul_(self.torque)
        dt = self.dt
        k1 = self._rates(state, u)
        k2 = self._rates(torch.add(state, k1, alpha=dt / 2), u)
        k3 = self._rates(torch.add(state, k2, alpha=dt / 2), u)
        k4 = self._rates(torch.add(state, k3, alpha=dt), u)
        state = torch.add(state, k1 + 2.0 * (k2 + k3) + k4, alpha=dt / 6.0)
        angles = torch.remainder(state[:, :2] + math.pi, 2 * math.pi) - math.pi
        bounds = constant((4 * math.pi, 9 * math.pi), state)
        state = torch.cat((angles, torch.clamp(state[:, 2:], -bounds, bounds)), 1)
        first, second = angles.unbind(1)
        terminated = first.cos() + (first + second).cos() < -1.0
        return state, terminated.to(state.dtype) - 1.0, terminated

    def _rates(self, state: Tensor, u: Tensor) -> Tensor:
        a, b, a_dot, b_dot = state.unbind(1)
        g, cos_b, half_sin_b = self.gravity, b.cos(), b.sin() * 0.5
        d1, d2 = cos_b + 3.5, cos_b * 0.5 + 1.25
        p2 = (a + b).sin() * (0.5 * g)
        p1 = torch.add(p2, a.sin(), alpha=1.5 * g) - half_sin_b * b_dot * (b_dot + 2.0 * a_dot)
        ratio = d2 / d1
        turning = u + ratio * p1 - p2
        if self.dynamics == "book":
            turning = torch.addcmul(turning, half_sin_b, a_dot * a_dot, value=-1.0)
        b_acc = turning / (1.25 - d2 * ratio)
        return torch.stack((a_dot, b_dot, -(d2 * b_acc + p1) / d1, b_acc), 1)

    def observe(self, state: Tensor) -> Tensor:
        angles = state[:, :2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((cos[:, 0], sin[:, 0], cos[:, 1], sin[:, 1], state[:, 2], state[:, 3]), 1)


def _valley_start(n: int, generator: torch.Generator, device: str) -> Tensor:
    position = uniform((n, 1), -0.6, -0.4, generator, device)
    return torch.cat((position, torch.zeros_like(position)), 1)


def _valley(state: Tensor, push: Tensor, gravity: float) -> Tensor:
    """Position and velocity one step later, the walls at -1.2 (inelastic) and 0.6."""
    position, velocity = state.unbind(1)
    velocity = torch.add(velocity + push, (position * 3.0).cos(), alpha=-gravity).clamp_(-0.07, 0.07)
    position = (position + velocity).clamp_(-1.2, 0.6)
    velocity = torch.where(position > constant((-1.2,), state), velocity, velocity.clamp(min=0.0))
    return torch.stack((position, velocity), 1)


def _pendulum_spread(device: torch.device | str) -> Tensor:
    return constant((math.pi, 1.0), torch.empty(0, device=device))
