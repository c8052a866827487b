"""The slot `curriculum`: which problem next?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.part import Part
from partita.core.policy import Policy
from partita.core.task import Task

ROUNDS = 8  # draws of a task before a pool is as large as its problems allow


class Curriculum(Part):
    """Chooses problems before each rollout and may learn from the batch after it.

    Class attributes:
        tracks: true when `annotate` fills `batch.baseline` with an estimate of each problem's value.
    """

    slot: ClassVar[str] = "curriculum"
    tracks: ClassVar[bool] = False

    def start(self, policy: Policy, task: Task, rollout: Any, generator: torch.Generator) -> None:
        """Look at the task with the policy as it is before the first step; `rollout` is the recipe's."""

    def sample(self, task: Task, n: int, generator: torch.Generator) -> Any:
        """n problems of the task."""
        raise NotImplementedError

    def annotate(self, batch: Batch) -> Batch:
        """The batch with what is known of its problems, before rewards and credit are worked out."""
        return batch

    def learn(self, policy: Policy, batch: Batch) -> None:
        """Learn from the batch that the problems gave, after the policy has."""
        self.update(batch)

    def update(self, batch: Batch) -> None:
        """Learn from the batch, where the policy is not needed for it."""

    def metrics(self) -> dict[str, float]:
        """What to watch of the choice."""
        return {}


@dataclass(frozen=True)
class Uniform(Curriculum):
    """Problems as the task draws them."""

    def sample(self, task: Any, n: int, generator: torch.Generator) -> Any:
        return task.problems(n, generator)


@dataclass(frozen=True)
class Pool(Curriculum):
    """A fixed set of problems that are met again and again, as those of a data set are.

    size: problems with different prompts, drawn from the task once (fewer where it has no more). A batch is drawn
    without replacement; with it only when the batch is larger than the set.
    """

    domains = ("language",)
    size: int = 256
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"curriculum.size: expected at least 1 problem, got {self.size}")

    def pool(self, task: Any, generator: torch.Generator) -> list[Any]:
        """The problems; the first call takes one number from `generator`, which decides them all."""
        if "seed" not in self._held:
            self._held["seed"] = int(torch.randint(2**31, (), generator=generator))
        if "problems" not in self._held:
            own = torch.Generator().manual_seed(self._held["seed"])
            found: dict[str, Any] = {}
            for _ in range(ROUNDS):
                for problem in task.problems(self.size, own):
                    if len(found) < self.size:
                        found.setdefault(problem.prompt, problem)
                if len(found) == self.size:
                    break
            self._held["problems"] = list(found.values())
            self._held["place"] = {prompt: i for i, prompt in enumerate(found)}
        return self._held["problems"]

    def weights(self, count: int) -> torch.Tensor:
        """Chances of the problems relative to each other, (count,)."""
        return torch.ones(count, dtype=torch.float64)

    def sample(self, task: Any, n: int, generator: torch.Generator) -> Any:
        problems = self.pool(task, generator)
        chances = self.weights(len(problems))
        return [problems[i] for i in torch.multinomial(chances, n, n > len(problems), generator=generator).tolist()]

    def places(self, batch: Batch) -> list[int | None]:
        """Which problem of the set each trajectory answers; None for one that is not in it."""
        known = self._held.get("place", {})
        return [known.get(record["prompt"]) for record in batch.records or ()]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._held["seed"]} if "seed" in self._held else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held.clear()
        self._held.update(state)


@dataclass(frozen=True)
class EasyToHard(Curriculum):
    """The levels of a task one after the other, `every` steps each; the last one until the end.

    levels: which ones, in order (empty: all that the task names).
    """

    domains = ("language",)
    every: int = 20
    levels: tuple[int, ...] = ()
    _held: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"curriculum.every: expected at least 1 step, got {self.every}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        return no_levels(self, task)

    def sample(self, task: Any, n: int, generator: torch.Generator) -> Any:
        levels, step = self.levels or task.levels, self._held.get("step", 0)
        return task.but(level=levels[min(step // self.every, len(levels) - 1)]).problems(n, generator)

    def update(self, batch: Batch) -> None:
        self._held["step"] = self._held.get("step", 0) + 1

    def state_dict(self) -> dict[str, Any]:
        return dict(self._held)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held.clear()
        self._held.update(state)


def no_levels(part: Any, task: Any) -> str | None:
    """Why a curriculum cannot choose between the levels of a task, or None."""
    known: Sequence[int] = getattr(task, "levels", ())
    if not known:
        return f"curriculum {part.part_name()} chooses between levels, and task {task.part_name()} has none"
    if task.level:
        return f"curriculum {part.part_name()} chooses the level; leave out --task.level {task.level}"
    held = getattr(task, "hard", None)
    wrong = [level for level in part.levels if level < 1 or level > max(*known, held or 0)]
    if wrong:
        return f"curriculum.levels: {wrong[0]} is no level of {task.part_name()}; it has {', '.join(map(str, known))}"
    return None
