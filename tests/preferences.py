"""A preference task for tests: prompts of one letter, responses of a few, and a judge who likes a letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.task import Outcome, Problem
from partita.tasks.preferences.base import Given, PreferenceTask


@dataclass(frozen=True)
class Liked(PreferenceTask):
    """The more letters `a` a response of up to three characters has, the better; ties are tossed."""

    size: int = 12
    labels: bool = False
    same: bool = False

    judged: ClassVar[bool] = True
    max_tokens: ClassVar[int] = 3

    def prompt(self, index: int) -> Problem:
        return Problem(f"{'pqrs'[index % 4]}{index}>", {"index": index})

    def problems(self, n, generator):
        return [self.prompt(i) for i in torch.randint(50, (n,), generator=generator).tolist()]

    def given(self, problem: Problem) -> Given:
        i = problem.data["index"]
        worse = "bcd"[i % 3] * (1 + i % 2)
        texts = ("aa" + "bc"[i % 2], worse)
        if self.labels:
            return Given(texts, labels=(1.0, 0.0), scores=tuple(map(self.score, texts)))
        return Given(texts, compared=((0, 1, 1.0, 2.0),))

    def score(self, text: str) -> float:
        return float(text.count("a"))

    def verify(self, problem, response):
        return Outcome(self.score(response))

    def prefer(self, problem, responses, generator):
        scores = torch.tensor([self.score(r) for r in responses], dtype=torch.float64)
        return (scores[:, None] - scores[None]).sigmoid()
