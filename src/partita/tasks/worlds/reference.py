"""What scripted agents score in a world: the frame in which a policy's score is read."""

from __future__ import annotations

import torch

from partita.core.errors import UserError
from partita.tasks.worlds.base import World


def reference_scores(world: World, n: int = 200, seed: int = 0) -> dict[int, dict[str, float]]:
    """Mean score over n problems of each level of the expert and of every flawed procedure; printed as a table.

    "turns" is the mean number of the expert's actions. The same problems for all agents of a level. A world
    without levels has one row, 0; one without an expert has no column "expert".
    """
    every = (*world.levels, *(() if world.hard is None else (world.hard,))) or (0,)
    table = {level: _scores(world.but(level=level) if world.levels else world, n, seed) for level in every}
    columns = list(table[every[0]])
    print("level  " + "  ".join(f"{name:>14}" for name in columns))
    for level, row in table.items():
        print(f"{level:>5}  " + "  ".join(f"{row[name]:>14.3f}" for name in columns))
    return table


def _scores(world: World, n: int, seed: int) -> dict[str, float]:
    problems = world.problems(n, torch.Generator().manual_seed(seed))
    out: dict[str, float] = {}
    for flaw in (None, *world.flaws):
        generator = torch.Generator().manual_seed(seed + 1)
        try:
            actions = [world.demonstrate(problem, generator, flaw) for problem in problems]
        except UserError:
            if flaw is None:
                continue
            raise
        scores = [world.transcript(p, a).score for p, a in zip(problems, actions, strict=True)]
        if flaw is None:
            out["turns"] = sum(map(len, actions)) / n
        out[flaw or "expert"] = sum(scores) / n
    return out
