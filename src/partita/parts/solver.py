"""The slot `solver`: how is the answer to a problem that is known, or can be sampled without end, computed?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from partita.core.part import Domain, Part


@dataclass(frozen=True)
class Solution:
    """What is known so far. numbers: what to compare, and to plot over the sweeps; tables: whole arrays by name.

    Names with a meaning: number "value", of the first state; "change", what the last sweep changed; tables "values"
    (S,), "policy" (S,) actions or (S, A) probabilities.
    """

    numbers: Mapping[str, float]
    tables: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Solver(Part):
    """Computes answers; called with a problem and a generator, it yields one `Solution` a sweep, the last the best.

    reads: how the problem is got from a task: the name of its property ("process" is a `FiniteMDP`). example: the task
    where none is named. Sweeps are what the solver repeats: over states, episodes, rounds. It stops by itself, or when
    the loop has had enough.
    """

    slot: ClassVar[str] = "solver"
    loop: ClassVar[str] = "exact"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    reads: ClassVar[str] = "process"
    example: ClassVar[str] = "river_swim"

    def cannot(self, problem: Any) -> str | None:
        """Why the problem is none for this solver, or None."""
        return None

    def __call__(self, problem: Any, generator: np.random.Generator) -> Iterator[Solution]:
        """Solutions, better and better."""
        raise NotImplementedError
