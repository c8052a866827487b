"""The exact loop: a solver on a problem whose answer is computed, not learnt; sweep by sweep, until it is found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from partita.core.errors import NonFinite, UserError
from partita.core.limits import check_count
from partita.core.recipe import Recipe
from partita.parts.solver import Solution, Solver


@dataclass(frozen=True)
class Exact(Recipe):
    """A recipe of the exact loop. sweeps: at most as many; every: sweeps between two entries of the curves."""

    loop: ClassVar[str] = "exact"
    slots: ClassVar[tuple[str, ...]] = ("solver",)

    solver: Solver
    sweeps: int = 1_000_000
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sweeps", "every"):
            check_count(name, getattr(self, name))

    def small(self) -> Exact:
        """The same with a few sweeps, to see that everything fits."""
        return self.but(sweeps=min(self.sweeps, 8))


@dataclass(frozen=True)
class Solved:
    """What came of it: the last solution, curves of its numbers with the sweeps they are of, and how long it took.

    finished: the solver stopped by itself.
    """

    solution: Solution
    curves: dict[str, NDArray[np.float64]]
    sweeps: int
    seconds: float
    finished: bool


def problem_of(solver: Solver, task: Any) -> Any:
    """The problem in a task that the solver reads; UserError where the task has none."""
    if not hasattr(type(task), solver.reads):
        raise UserError(f"task {task.part_name()}: it has no {solver.reads}, which solver {solver.part_name()} reads; "
                        "choose another --task")  # fmt: skip
    return getattr(task, solver.reads)


def solve(recipe: Exact, problem: Any, seed: int = 0, watch: Callable[[int, Solution], None] | None = None) -> Solved:
    """The problem's solution by the recipe's solver. watch: called with every sweep."""
    if (why := recipe.solver.cannot(problem)) is not None:
        raise UserError(f"solver {recipe.solver.part_name()}: it cannot solve this problem: {why}")
    began, generator = time.perf_counter(), np.random.default_rng(seed)
    rows: list[dict[str, float]] = []
    last, count, finished = None, 0, True
    with np.errstate(over="ignore", invalid="ignore"):  # what diverges is told by its numbers
        for solution in recipe.solver.fresh()(problem, generator):
            last, count = solution, count + 1
            for name, value in solution.numbers.items():
                if math.isnan(value):
                    raise NonFinite(f"sweep {count}: {name} is not a number; stopped")
            if count % recipe.every == 0:
                rows.append({"sweep": float(count), **solution.numbers})
            if watch is not None:
                watch(count, solution)
            if count >= recipe.sweeps:
                finished = False
                break
    if last is None:
        raise UserError(f"solver {recipe.solver.part_name()}: it found nothing to do")
    names = dict.fromkeys(name for row in rows for name in row)
    curves = {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
    return Solved(last, curves, count, time.perf_counter() - began, finished)
