"""What the generated worlds share: levels, a check of the turns they need, and dice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import World

T = TypeVar("T")


class Generated(World):
    """Base of generated worlds: `level` 0 draws every level of `levels` alike.

    `hard` is a level outside `levels` that is drawn only when asked for.
    """

    hosted: ClassVar[bool] = False
    hard: ClassVar[int]
    level: int

    def __post_init__(self) -> None:
        if self.level not in (0, *self.levels, self.hard):
            raise UserError(
                f"level: {self.level!r} is not a level of {self.part_name()}; choose {self.levels[0]} to "
                f"{self.hard} ({self.hard} is the hard one) or 0 for a mixture of "
                f"{self.levels[0]} to {self.levels[-1]}"
            )
        level = self.level or max(self.levels)
        if self.max_turns < self.turns(level):
            raise UserError(
                f"max_turns: {self.max_turns} is too few, an expert needs up to {self.turns(level)} turns "
                f"at level {level} of {self.part_name()}; set {self.turns(level)} or more"
            )

    def turns(self, level: int) -> int:
        """The most actions that the expert takes on any problem of a level."""
        raise NotImplementedError

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems of the level, the same for the same generator state."""
        dice = Dice(generator)
        return [self._problem(self.level or dice.choice(self.levels), dice) for _ in range(n)]

    def _problem(self, level: int, dice: Dice) -> Problem:
        raise NotImplementedError


class Dice:
    """Random choices from a torch.Generator, drawn in blocks because single draws are slow."""

    def __init__(self, generator: torch.Generator, block: int = 64) -> None:
        self.generator = generator
        self.block = block
        self.left: list[float] = []

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        if not self.left:
            g = self.generator
            self.left = torch.rand(self.block, generator=g, device=g.device, dtype=torch.float64).tolist()
        return int(self.left.pop() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + self.below(high - low + 1)

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out
