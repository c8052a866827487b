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


def generate(recipe: Mapping[str, Any], tokenizer: Any) -> Sequences:
    """The data of a recipe: of each task its share, of each level and procedure its share; the hard slices never."""
    ids = tokenizer.get_vocab()
    table = torch.zeros(128, dtype=torch.uint8)
    for text, i in ids.items():
        if len(text) == 1:
            table[ord(text)] = i
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    total = sum(settings["weight"] for settings in recipe["tasks"].values())
    rows: list[Tensor] = []
    acts: list[Tensor] = []
    for number, (name, settings) in enumerate(recipe["tasks"].items()):
        generator = torch.Generator().manual_seed(recipe["seed"] + number)
        task = part_class("task", name)()
        count = round(recipe["sequences"] * settings["weight"] / total)
        for text, spans in written(task, settings, count, generator):
            row = torch.empty(len(text) + 2, dtype=torch.uint8)
            row[0], row[-1] = bos, eos
            row[1:-1] = table[torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8).int()]
            act = torch.zeros(len(row), dtype=torch.bool)
            for start, end in spans:
                act[start + 1 : end + 1] = True
            act[-1] = spans[-1][1] == len(text)  # an answer that is over ends; an episode that was cut does not
            rows.append(row)
            acts.append(act)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe["seed"])).tolist()
    lengths = torch.tensor([len(rows[i]) for i in order])
    start = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return Sequences(torch.cat([rows[i] for i in order]), torch.cat([acts[i] for i in order]), start)


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
