"""What claims measure of a finished run's policy, beyond its own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partita.loops.run import Generators
from partita.parts.rollout import Sample
from partita.policies.language import Language


def saved(folder: Path) -> Any:
    """The language policy that the run in `folder` ended with."""
    return Language(model=str(folder / "policy")).build(None, False, Generators(0)["init"])


def pass_at(policy: Any, task: Any, k: int, count: int, seed: int, greedy: bool = False) -> float:
    """Share of `count` fresh problems that at least one of k samples at temperature 1 solves (score 1).

    greedy: the likeliest response in place of samples; k is then 1. Unbiased, since just k samples are drawn.
    """
    streams, solved = Generators(seed), 0
    problems = task.problems(count, streams["problems"])
    for i in range(0, count, 32):
        batch = Sample().sample(policy, task, problems[i : i + 32], k, streams["responses"], greedy)
        solved += int((batch.need("outcome") >= 1).view(-1, k).any(1).sum())
    return solved / count
