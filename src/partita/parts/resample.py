"""The slot `resample`: where do the responses come from?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.pairs import Pairs
from partita.core.part import Part
from partita.core.task import Problem


class Resample(Part):
    """Gives the responses of a step: those of the data, or new ones of the policy.

    samples: whether the policy writes them. The comparisons among given responses come along; sampled ones have none
    yet.
    """

    slot: ClassVar[str] = "resample"
    loop: ClassVar[str] = "preference"
    domains = ("language",)
    samples: ClassVar[bool] = False

    def __call__(
        self, policy: Any, task: Any, count: int, step: int, generator: torch.Generator
    ) -> tuple[Pairs, list[Problem]]:
        """Responses to `count` prompts; and the problem of each response."""
        raise NotImplementedError


@dataclass(frozen=True)
class Offline(Resample):
    """The responses of the data set, every prompt once an epoch, in an order that each epoch draws anew."""

    _order: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not getattr(task, "size", 0):
            return f"resample offline: task {task.part_name()} gives no responses; use --resample online"
        return None

    def __call__(
        self, policy: Any, task: Any, count: int, step: int, generator: torch.Generator
    ) -> tuple[Pairs, list[Problem]]:
        problems = [task.prompt(i) for i in self.draw(task.size, count, generator)]
        return offered(policy, task, problems)

    def draw(self, size: int, count: int, generator: torch.Generator) -> list[int]:
        """The next indices."""
        left: list[int] = self._order.setdefault("left", [])
        out: list[int] = []
        while len(out) < count:
            if not left:
                left.extend(torch.randperm(size, generator=generator).tolist())
            take = min(count - len(out), len(left))
            out += left[:take]
            del left[:take]
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"left": list(self._order.get("left", []))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order["left"] = list(state["left"])


@dataclass(frozen=True)
class Online(Resample):
    """`responses` new ones of the policy to every prompt, sampled every `every` steps.

    every: 1 samples for each step (online); k > 1 samples for k steps at once and learns from them in turn (iterated).
    Prompts are those of the data set where there is one, else the task's own.
    """

    samples = True
    responses: int = 4
    every: int = 1
    temperature: float = 1.0
    max_tokens: int | None = None
    _store: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("responses", 2), ("every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"resample.{name}: expected {least} or more, got {getattr(self, name)}")
        check_above("resample.temperature", self.temperature)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"resample.max_tokens: expected 1 or more, or None, got {self.max_tokens}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not getattr(task, "judged", False) and recipe.pairs.judges:
            return f"resample online: nobody judges new responses in task {task.part_name()}; use --resample offline"
        return None

    def __call__(
        self, policy: Any, task: Any, count: int, step: int, generator: torch.Generator
    ) -> tuple[Pairs, list[Problem]]:
        from partita.parts.rollout import Sample

        waiting: list[tuple[Batch, list[Problem]]] = self._store.setdefault("waiting", [])
        if not waiting:
            problems = self._prompts(task, count * self.every, generator)
            sampler = Sample(temperature=self.temperature, max_tokens=self.max_tokens)
            batch = sampler.sample(policy, task, problems, self.responses, generator)
            for i in range(self.every):
                some, rows = problems[i * count : (i + 1) * count], count * self.responses
                waiting.append((batch[slice(i * rows, (i + 1) * rows)], some))
        batch, problems = waiting.pop(0)
        none = torch.zeros(0, dtype=torch.int64, device=batch.mask.device)
        return Pairs(batch, none, none, none.float()), [p for p in problems for _ in range(self.responses)]

    def _prompts(self, task: Any, count: int, generator: torch.Generator) -> list[Problem]:
        size = getattr(task, "size", 0)
        if not size:
            return task.problems(count, generator)
        return [task.prompt(i) for i in torch.randint(size, (count,), generator=generator).tolist()]

    def state_dict(self) -> dict[str, Any]:
        held = self._store.get("waiting", [])
        return {"waiting": [[batch.state_dict(), [asdict(p) for p in some]] for batch, some in held]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._store["waiting"] = [
            (Batch.from_state(batch), [Problem(**p) for p in some]) for batch, some in state["waiting"]
        ]


def offered(policy: Any, task: Any, problems: Sequence[Problem]) -> tuple[Pairs, list[Problem]]:
    """The responses that the data hold for some prompts, and the comparisons among them."""
    asked: list[Problem] = []
    texts: list[str] = []
    compared: list[tuple[int, int, float, float]] = []
    labels: list[float] = []
    scores: list[float] = []
    groups: list[int] = []
    cut: list[bool] = []
    for number, problem in enumerate(problems):
        given, start = task.given(problem), len(texts)
        n = len(given.responses)
        texts += given.responses
        asked += [problem] * n
        groups += [number] * n
        compared += [(start + i, start + j, p, m) for i, j, p, m in given.compared]
        labels += given.labels or (math.nan,) * n
        scores += given.scores or (math.nan,) * n
        cut += given.unfinished or (False,) * n
    batch = policy.written([p.prompt for p in asked], texts, torch.tensor(groups), task.stop, cut)
    device = batch.mask.device
    table = torch.tensor(compared, dtype=torch.float64, device=device).reshape(-1, 4)
    margin = table[:, 3].float()
    label = torch.tensor(labels, device=device)
    records = tuple({"prompt": p.prompt, "response": text} for p, text in zip(asked, texts, strict=True))
    batch = batch.but(outcome=torch.tensor(scores, device=device), records=records)
    return Pairs(
        batch, table[:, 0].long(), table[:, 1].long(), table[:, 2].float(),
        None if bool(margin.isnan().all()) else margin.nan_to_num(0.0), None if bool(label.isnan().all()) else label,
    ), asked  # fmt: skip
