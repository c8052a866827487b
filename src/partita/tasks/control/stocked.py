"""`Stocked`: an environment whose state also says what has been earned so far, so that risk can be chosen by it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partita.core.spaces import Space
from partita.tasks.control._checks import check_finite, check_positive, refuse
from partita.tasks.control._draws import uniform
from partita.tasks.control.base import Native
from partita.tasks.control.gym import Setting
from partita.tasks.offline import recording


@dataclass(frozen=True)
class Kinked:
    """A utility with a kink at 0, which every scale of x leaves as it is: f(k x) = k f(x) for k > 0.

        f(x) = below min(x, 0) + above max(x, 0)

    (1, 1) is x, (1, 0) what is missing to 0, (1, -1) the distance -|x|. x: a NumPy array or a tensor of any shape.
    """

    below: float = 1.0
    above: float = 1.0

    def __call__(self, x: Any) -> Any:
        return self.above * x + (self.below - self.above) * x.clip(max=0)

    @property
    def lipschitz(self) -> float:
        """How much f(x) changes with x, at most."""
        return max(abs(self.below), abs(self.above))


@dataclass(frozen=True)
class Stocked(Native):
    """An environment with a stock c, seen beside its observation and the share of time that is left.

        c' = (c + r) / discount,    c_0 uniform in [low, high],    so that c_t + G_t = discount^-t (c_0 + G_0)

    What is to be maximised is E f(c_0 + G_0), f(x) = below min(x, 0) + above max(x, 0): learners that know of stocks
    read `utility`, any other learns from the rewards of the environment. env: a native one by name, its observations
    vectors (D,). env_settings: its fields. Observation: its own, c / scale, time left in [0, 1], (D + 2,). The time
    being seen, its end ends an episode. shown: without it c_0 is seen in place of c. State: that of the environment, c,
    steps, c_0 in float64, (n, K + 3). After Avila Pires et al. (2025), arXiv:2501.13028.
    """

    env: str = "betting_table"
    env_settings: dict[str, Setting] = field(default_factory=dict)
    below: float = 1.0
    above: float = 0.0
    low: float = 0.0
    high: float = 0.0
    discount: float = 1.0
    scale: float = 1.0
    shown: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "scale")
        check_finite(self, "below", "above", "low", "high")
        if not 0 < self.discount <= 1:
            raise refuse(self, "discount", self.discount, "give a number above 0, up to 1: the stock is divided by it")
        if self.low > self.high:
            raise refuse(self, "low", self.low, f"give a number of at most high = {self.high:g}")

    @functools.cached_property
    def environment(self) -> Native:
        """The environment without a stock; UserError for what is none, or cannot have one."""
        env = recording.environment(self.env, self.env_settings)
        if not isinstance(env, Native) or len(env.observation_shape) != 1:
            raise refuse(self, "env", self.env, "choose a native environment whose observations are vectors")
        return env

    @property
    def utility(self) -> Kinked:
        """f."""
        return Kinked(self.below, self.above)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.environment.observation_shape[0] + 2,)

    @property
    def action_space(self) -> Space:
        return self.environment.action_space

    @property
    def horizon(self) -> int:
        return self.environment.horizon

    @functools.cached_property
    def _held(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and kind of a state of the environment."""
        one = self.environment.reset(1, torch.Generator())
        return one.shape[1:], one.dtype

    def joined(self, inner: Tensor, stock: Tensor, steps: Tensor, first: Tensor) -> Tensor:
        """States from those of the environment (n, ...) and three columns (n,)."""
        return torch.cat((inner.reshape(len(stock), -1).double(), torch.stack((stock, steps, first), 1)), 1)

    def apart(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `joined`: states of the environment, and the three columns (n, 3)."""
        shape, dtype = self._held
        size = math.prod(shape)
        return state[:, :size].to(dtype).view(-1, *shape), state[:, size:]

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """n first states; where low < high stocks are drawn before the rest."""
        stock = torch.full((n,), self.low, dtype=torch.float64, device=device)
        if self.low < self.high:
            stock = uniform((n,), self.low, self.high, generator, device).double()
        return self.joined(self.environment.reset(n, generator, device), stock, torch.zeros_like(stock), stock)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the environment; `action` as it takes it."""
        inner, about = self.apart(state)
        stock, steps, first = about.unbind(1)
        inner, reward, over = self.environment.step(inner, action, generator)
        return (
            self.joined(inner, (stock + reward) / self.discount, steps + 1, first),
            reward,
            over | (steps + 1 >= self.horizon),
        )

    def observe(self, state: Tensor) -> Tensor:
        inner, about = self.apart(state)
        stock, steps, first = about.unbind(1)
        seen = torch.stack(((stock if self.shown else first) / self.scale, 1 - steps / self.horizon), 1)
        return torch.cat((self.environment.observe(inner), seen.float()), 1)
