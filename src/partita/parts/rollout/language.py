"""Rollouts in language: one response a prompt, judged by the task's verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.task import Outcome, Problem
from partita.estimators.masked import put_last
from partita.policies.sampling import Sampling


def respond(
    settings: Any,
    policy: Any,
    task: Any,
    problems: Sequence[Problem],
    group_size: int,
    generator: torch.Generator,
    needs: Set[str],
    greedy: bool = False,
) -> Batch:
    """`group_size` responses to every problem, verified; the score is the reward of the last token.

    Where `max_tokens` is left to the task, the model's context may lower it. A world (a task that opens episodes) is
    answered in several turns instead.
    """
    longest = settings.max_tokens or policy.room([p.prompt for p in problems], task.max_tokens)
    sampling = Sampling(
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, min_p=settings.min_p,
        max_tokens=longest, stop=tuple(task.stop), greedy=greedy,
    )  # fmt: skip
    if hasattr(task, "open"):
        from partita.parts.rollout.world import converse

        batch = converse(policy, task, problems, group_size, sampling, generator)
    else:
        generation = policy.generate([p.prompt for p in problems], group_size, sampling, generator, entropy=True)
        asked = [p for p in problems for _ in range(group_size)]
        outcomes = task.verify_all(asked, generation.texts)
        batch = judged(generation.batch(), asked, generation.texts, outcomes)
    if "greedy" in needs and not greedy:
        best = respond(settings, policy, task, problems, 1, generator, frozenset(), greedy=True)
        batch = batch.but(baseline=best.need("outcome").repeat_interleave(group_size))
    return batch


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
