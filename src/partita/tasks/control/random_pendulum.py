"""A pendulum of unknown mass and length, drawn anew with every episode."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.tasks.control._draws import uniform
from partita.tasks.control.classic import Pendulum


@dataclass(frozen=True)
class RandomPendulum(Pendulum):
    """The pendulum with a mass and a length that are drawn with every episode, uniform in ranges, and not observed.

    State (a, w, m, l), else as `pendulum`; its fields mass and length do not matter.
    """

    masses: tuple[float, float] = (0.5, 1.5)
    lengths: tuple[float, float] = (0.5, 1.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("masses", "lengths"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UserError(f"task.{name}: expected a lower and a higher number above 0, got {low} and {high}")

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        drawn = [uniform((n, 1), *ends, generator, device) for ends in (self.masses, self.lengths)]
        return torch.cat((super().reset(n, generator, device), *drawn), 1)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        single = copy.copy(self)
        object.__setattr__(single, "mass", state[:, 2])
        object.__setattr__(single, "length", state[:, 3])
        after, reward, over = Pendulum.step(single, state[:, :2], action, generator)
        return torch.cat((after, state[:, 2:]), 1), reward, over

    def observe(self, state: Tensor) -> Tensor:
        return super().observe(state[:, :2])

    def grid(self, points: int) -> Tensor:
        """Masses and lengths over the box, ends included, (points^2, 2)."""
        return torch.cartesian_prod(*(torch.linspace(*ends, points) for ends in (self.masses, self.lengths)))
