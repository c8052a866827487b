"""Worked answers and episodes of the built-in tasks, right and flawed, as one tensor of characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partita.core.registry import part_class
from partita.core.task import Task

Share = float | Sequence[float]  # one number, or one a level


@dataclass(frozen=True)
class Sequences:
    """N sequences end to end. tokens: (S,) uint8; act: (S,) bool, what a policy writes; start: (N + 1,) int64."""

    tokens: Tensor
    act: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.start) - 1


def generate(recipe: Mapping[str, Any], name: str, tokenizer: Any) -> Sequences:
    """The share of a recipe's sequences that one task has: of each level and procedure its share, never the hard slice.

    Each starts with bos; eos ends those that are over (not an episode that was cut).
    """
    table = torch.zeros(128, dtype=torch.uint8)
    for text, i in tokenizer.get_vocab().items():
        if len(text) == 1:
            table[ord(text)] = i
    settings = recipe["tasks"][name]
    total = sum(task["weight"] for task in recipe["tasks"].values())
    count = round(recipe["sequences"] * settings["weight"] / total)
    generator = torch.Generator().manual_seed(recipe["seed"] + list(recipe["tasks"]).index(name))
    rows: list[Tensor] = []
    acts: list[Tensor] = []
    for text, spans in written(part_class("task", name)(), settings, count, generator):
        row = torch.full((len(text) + 2,), tokenizer.bos_token_id, dtype=torch.uint8)
        row[1:-1] = table[torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8).int()]
        row[-1] = tokenizer.eos_token_id
        act = torch.zeros(len(row), dtype=torch.bool)
        for first, end in spans:
            act[first + 1 : end + 1] = True
        act[-1] = spans[-1][1] == len(text)
        rows.append(row)
        acts.append(act)
    lengths = torch.tensor([len(row) for row in rows])
    start = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return Sequences(torch.cat(rows), torch.cat(acts), start)


def joined(parts: Sequence[Sequences]) -> Sequences:
    """The sequences of several parts, one part after the other."""
    start, at = [torch.zeros(1, dtype=torch.int64)], 0
    for part in parts:
        start.append(part.start[1:] + at)
        at += len(part.tokens)
    return Sequences(torch.cat([p.tokens for p in parts]), torch.cat([p.act for p in parts]), torch.cat(start))


def written(
    task: Any, settings: Mapping[str, Any], count: int, generator: torch.Generator
) -> list[tuple[str, list[tuple[int, int]]]]:
    """`count` texts of a task, each with the spans of characters that the policy writes."""
    levels: Sequence[int] = task.levels
    shares = settings.get("levels", [1.0] * len(levels))
    out: list[tuple[str, list[tuple[int, int]]]] = []
    for k, (level, share) in enumerate(zip(levels, shares, strict=True)):
        n = round(count * share / sum(shares))
        here: Task = task.but(level=level)
        problems = here.problems(n, generator)  # type: ignore[attr-defined]
        weights = {name: _at(value, k) for name, value in settings["mixture"].items()}
        drawn = torch.multinomial(torch.tensor(list(weights.values())), n, replacement=True, generator=generator)
        names = [None if name == "right" else name for name in weights]
        for problem, pick in zip(problems, drawn.tolist(), strict=True):
            given = here.demonstrate(problem, generator, names[pick])  # type: ignore[attr-defined]
            if isinstance(given, str):
                text = problem.prompt + given
                out.append((text, [(len(problem.prompt), len(text))]))
            else:
                told = here.transcript(problem, given)  # type: ignore[attr-defined]
                out.append((told.text, list(told.spans)))
    return out


def _at(share: Share, k: int) -> float:
    return float(share) if isinstance(share, int | float) else float(share[k])
