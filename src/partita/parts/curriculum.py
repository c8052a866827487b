"""The slot `curriculum`: which problem next?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from partita.core.batch import Batch
from partita.core.part import Part
from partita.core.task import Task


class Curriculum(Part):
    """Chooses problems before each rollout and may learn from the batch after it."""

    slot: ClassVar[str] = "curriculum"

    def sample(self, task: Task, n: int, generator: torch.Generator) -> Any:
        """n problems of the task."""
        raise NotImplementedError

    def update(self, batch: Batch) -> None:
        """Learn from the batch that the problems gave."""


@dataclass(frozen=True)
class Uniform(Curriculum):
    """Problems as the task draws them."""

    def sample(self, task: Any, n: int, generator: torch.Generator) -> Any:
        return task.problems(n, generator)
