"""Self-Evolving Curriculum for LLM Reasoning (Chen et al., 2025), arXiv:2505.14970.

Changes GRPO in one slot: `curriculum`. Categories of problems (levels, kinds, or both) are the arms of a bandit whose
gains drift as the policy learns; a problem's category is drawn by Boltzmann exploration, and the gain of a category is
the mean absolute advantage that its problems gave, a stand-in for what can be learnt from them.

    c ~ softmax(Q / temperature),   gain(c) = mean |A| over the problems of c,   Q(c) <- rate * gain + (1 - rate) * Q(c)

With GRPO's advantages and rewards of 0 and 1, mean |A| is 2 sqrt(p (1 - p)): greatest where half of the responses are
right. Written after the authors' code (readme, bandit and loader) and the abstract; no equation is cited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.paper import Claim, Paper
from partita.papers.baselines.grpo import GRPO
from partita.papers.measuring import pass_at, saved
from partita.parts.curriculum import Curriculum, EasyToHard, no_levels
from partita.tasks.language.arithmetic import Arithmetic

PAPER = Paper(
    key="sec", title="Self-Evolving Curriculum for LLM Reasoning", arxiv="2505.14970", authors="Chen et al.",
    year=2025, changes=("curriculum",),
)  # fmt: skip

Arm = tuple[int, str]  # level (0: as the task draws it), category ("": as the task draws it)


@dataclass(frozen=True)
class SelfEvolving(Curriculum):
    """A bandit over the categories of a task, paid in absolute advantage (SEC).

        chance(c) = exp(Q(c) / temperature) / sum_k exp(Q(k) / temperature)
        Q(c) <- (1 - rate) Q(c) + rate * mean_i mean_t |A_it|     over the trajectories i of category c in the batch

    Q starts at 0, and every problem of a batch draws its own category. A is what the recipe's credit gives, before
    whitening and before `select` drops anything. arms: what a category is, "level", "category" or "both" (all pairs).
    levels: which levels (empty: all that the task names). temperature, rate: 1 and 0.5 in the authors' Countdown runs
    (0.4 in mathematics, 0.2 with pairs). As temperature grows the choice becomes uniform.

    A category that the batch does not hold keeps its Q; in the authors' code it moves towards 0, as with fade=True.
    """

    domains = ("language",)
    arms: Literal["level", "category", "both"] = "level"
    levels: tuple[int, ...] = ()
    rate: float = 0.5
    temperature: float = 1.0
    fade: bool = False
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.arms not in ("level", "category", "both"):
            raise UserError(f"curriculum.arms: expected level, category or both, got {self.arms!r}")
        if not 0 < self.rate <= 1:
            raise UserError(f"curriculum.rate: expected a number above 0 and at most 1, got {self.rate}")
        check_above("curriculum.temperature", self.temperature)
        if self.levels and self.arms == "category":
            raise UserError("curriculum.levels: the arms are categories; choose --curriculum.arms level or both")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if self.arms != "category" and (why := no_levels(self, task)) is not None:
            return why
        if self.arms != "level" and not getattr(task, "categories", ()):
            return f"curriculum self_evolving: task {task.part_name()} has no categories; use --curriculum.arms level"
        if self.arms != "level" and task.category:
            return f"curriculum self_evolving chooses the category; leave out --task.category {task.category}"
        return None

    def choices(self, task: Any) -> list[Arm]:
        """The arms, in the order of the task."""
        levels = (0,) if self.arms == "category" else self.levels or task.levels
        return [(level, kind) for level in levels for kind in (("",) if self.arms == "level" else task.categories)]

    def chances(self, arms: list[Arm]) -> Tensor:
        """The chance of each arm, float64."""
        gain = torch.tensor([self._held.get(name(arm), 0.0) for arm in arms], dtype=torch.float64)
        return (gain / self.temperature).softmax(0)

    def sample(self, task: Any, n: int, generator: torch.Generator) -> Any:
        arms = self.choices(task)
        for arm in arms:
            self._held.setdefault(name(arm), 0.0)
        drawn = torch.multinomial(self.chances(arms), n, replacement=True, generator=generator)
        out: list[Any] = [None] * n
        for k, (level, kind) in enumerate(arms):
            places = (drawn == k).nonzero()[:, 0].tolist()
            fixed = {"level": level} if level else {}
            source = task.but(**fixed, **({"category": kind} if kind else {}))
            for place, problem in zip(places, source.problems(len(places), generator) if places else (), strict=True):
                out[place] = problem
        return out

    def update(self, batch: Batch) -> None:
        size = (batch.need("advantage").abs() * batch.mask).sum(1) / batch.lengths.clamp(min=1)
        gains: dict[str, list[float]] = {}
        for record, gain in zip(batch.records or (), size.tolist(), strict=True):
            arm = (record["level"], "") if self.arms == "level" else (0, record["category"])
            arm = (record["level"], record["category"]) if self.arms == "both" else arm
            gains.setdefault(name(arm), []).append(gain)
        for key, held in self._held.items():
            if key in gains or self.fade:
                mean = sum(gains[key]) / len(gains[key]) if key in gains else 0.0
                self._held[key] = (1 - self.rate) * held + self.rate * mean

    def metrics(self) -> dict[str, float]:
        return {f"gain_{key}": value for key, value in self._held.items()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._held)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held.clear()
        self._held.update(state)


def name(arm: Arm) -> str:
    """An arm in words: 2, addition, 2_addition."""
    level, kind = arm
    return "_".join([str(level)] * bool(level) + [kind] * bool(kind))


RECIPES = {
    "sec": GRPO.but(curriculum=SelfEvolving()),
    "random_curriculum": GRPO.but(curriculum=SelfEvolving(temperature=1e9)),
    "easy_to_hard": GRPO.but(curriculum=EasyToHard()),
}


def unseen_level(folder: Path) -> float:
    """Greedy success of a run's policy on 300 problems of four digits, one more than it was trained on."""
    return pass_at(saved(folder), Arithmetic(level=4), 1, 300, seed=7, greedy=True)


_TRAINED = {"steps": 30, "batch_size": 16, "eval_size": 300, "lr": 3e-4}
_WASTE = (
    "levels without gain",
    (
        ("none (2, 3)", {"curriculum.levels": (2, 3)}),
        ("half (2, 3, 5, 6)", {"curriculum.levels": (2, 3, 5, 6)}),
    ),
)

CLAIMS = (
    Claim(
        statement="trains for problems harder than those it saw better than a random order does",
        treatment="sec", control="random_curriculum", task="arithmetic", metric="success on an unseen level",
        settings=_TRAINED, dial=_WASTE, measure=unseen_level, search={"lr": (1e-4, 3e-4)},
        search_treatment={"curriculum.temperature": (0.2, 1.0)}, search_control={"credit.std": (True, False)},
        analysis="No better than a random order, with levels that teach nothing among those to choose from or "
        "without; without them slightly worse. 0.87 against 0.88: a random order wastes half of its "
        "problems and loses little by it here.",
    ),
    Claim(
        statement="trains for problems harder than those it saw better than going from easy to hard does",
        treatment="sec", control="easy_to_hard", task="arithmetic", metric="success on an unseen level",
        settings={**_TRAINED, "curriculum.levels": (1, 2, 3)}, measure=unseen_level,
        search_treatment={"curriculum.temperature": (0.2, 1.0)}, search_control={"curriculum.every": (5, 10)},
        analysis="0.87 against 0.85, and the interval just reaches below zero.",
    ),
)  # fmt: skip
