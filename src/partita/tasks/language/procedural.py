"""What the generated tasks share: levels, categories, bulk random numbers, worked answers with chosen flaws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch

from partita.core.errors import UserError, nearest
from partita.core.task import Problem
from partita.tasks.language.base import LanguageTask

T = TypeVar("T")


class Procedural(LanguageTask):
    """Base of generated tasks: `level` 0 draws every level of `levels` alike, `category` "" every category.

    `hard` is a level outside `levels` whose right procedure is longer or composed otherwise; it is drawn
    only when asked for. `demonstrate` writes worked answers, right ones and ones with a named flaw, from
    which base models learn a mixture of procedures.
    """

    stop: ClassVar[tuple[str, ...]] = ("\n",)
    levels: ClassVar[tuple[int, ...]]
    hard: ClassVar[int]
    categories: ClassVar[tuple[str, ...]]
    _columns: ClassVar[int]  # random numbers that an attempt at a problem uses
    flaws: ClassVar[tuple[str, ...]]
    level: int
    category: str

    def __post_init__(self) -> None:
        top = max(*self.levels, self.hard)
        if self.level not in range(top + 1):
            raise UserError(
                f"level: {self.level!r} is not a level of {self.part_name()}; choose 1 to {top} "
                f"({self.hard} is the hard slice) or 0 for a mixture of 1 to {max(self.levels)}"
            )
        if self.category and self.category not in self.categories:
            raise UserError(
                f"category: {self.part_name()} has no `{self.category}`; {nearest(self.category, self.categories)}"
            )

    def demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None = None) -> str:
        """A worked response that ends with the stop string: right, or following the flawed procedure `flaw`.

        A flawed procedure is sometimes right by luck (no carry to forget). Raises UserError on an unknown flaw.
        """
        if flaw is not None and flaw not in self.flaws:
            raise UserError(f"flaw: {self.part_name()} has no `{flaw}`; {nearest(flaw, self.flaws)}")
        return self._work(problem, _Draw(uniforms(generator, 1, 16)[0]), flaw)

    def _work(self, problem: Problem, draw: _Draw, flaw: str | None) -> str:
        raise NotImplementedError

    def check_chain(self, problem: Problem, response: str) -> bool:
        """Whether the worked steps that a response shows are all there, in order, and right.

        Strict: a step left out, added or written otherwise is wrong, even where the answer is right. Whether the answer
        is, `verify` says. Pure; never raises on any string.
        """
        raise NotImplementedError

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems, the same for the same generator state; levels and categories of a mixture are drawn alike."""
        cells = [
            (self.level or draw.choice(self.levels), self.category or draw.choice(self.categories))
            for draw in draws(generator, n, 2)
        ]
        found: list[Problem | None] = [None] * len(cells)
        pending = list(range(len(cells)))
        tries = 1
        while pending:
            rows = draws(generator, tries * len(pending), self._columns)
            for k, i in enumerate(pending):
                attempts = (self._attempt(*cells[i], draw) for draw in rows[k * tries : (k + 1) * tries])
                found[i] = next((problem for problem in attempts if problem is not None), None)
            pending = [i for i in pending if found[i] is None]
            tries = 4
        return [problem for problem in found if problem is not None]

    def _attempt(self, level: int, category: str, draw: _Draw) -> Problem | None:
        """One problem of a level and category, or None when the numbers drawn make no good one."""
        raise NotImplementedError


class _Draw:
    """A row of uniform numbers, spent one by one; it starts again from the first when all are spent."""

    def __init__(self, row: list[float]) -> None:
        self.row = row
        self.used = 0

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        value = self.row[self.used % len(self.row)]
        self.used += 1
        return int(value * n)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + self.below(high - low + 1)

    def shuffled(self, n: int) -> list[int]:
        """The numbers 0 to n - 1 in random order."""
        left = list(range(n))
        return [left.pop(self.below(len(left))) for _ in range(n)]

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]


def uniforms(generator: torch.Generator, rows: int, columns: int) -> list[list[float]]:
    """Numbers in [0, 1), float64, (rows, columns), in one call to the generator."""
    shape = (max(rows, 0), columns)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).tolist()


def draws(generator: torch.Generator, rows: int, columns: int) -> list[_Draw]:
    """One `_Draw` of `columns` numbers for each of `rows` problems."""
    return [_Draw(row) for row in uniforms(generator, rows, columns)]
