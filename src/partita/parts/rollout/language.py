"""Rollouts in language: one response a prompt, judged by the task's verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.task import Outcome, Problem
from partita.estimators.masked import put_last
from partita.policies.sampling import Sampling


def respond(
    policy: Any,
    task: Any,
    problems: Sequence[Problem],
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Batch:
    """`group_size` responses to every problem, verified; the score is the reward of the last token."""
    generation = policy.generate([p.prompt for p in problems], group_size, sampling, generator, entropy=True)
    asked = [p for p in problems for _ in range(group_size)]
    outcomes = task.verify_all(asked, generation.texts)
    return judged(generation.batch(), asked, generation.texts, outcomes)


def judged(batch: Batch, problems: Sequence[Problem], texts: Sequence[str], outcomes: Sequence[Outcome]) -> Batch:
    """The batch with outcomes, rewards at the last tokens, and records for people to read."""
    for problem, outcome in zip(problems, outcomes, strict=True):
        if not math.isfinite(outcome.score):
            raise UserError(f"verifier: gave {outcome.score} for the problem {problem.prompt!r}; scores must be finite")
    score = torch.tensor([o.score for o in outcomes], device=batch.mask.device)
    records = tuple(
        {"prompt": p.prompt, "response": t, "score": o.score, "why": o.why, "parts": dict(o.parts),
         "category": p.category, "level": p.level}
        for p, t, o in zip(problems, texts, outcomes, strict=True)
    )  # fmt: skip
    return batch.but(outcome=score, reward=put_last(score, batch.mask), records=records)
