"""The probe ladder in language: tasks so small that the best score is known, each testing one thing.

Climb in order: the first probe that a learner fails says what is broken in it.

    probe_bandit             does the better token become likelier?
    probe_credit             does each of two tokens get its own credit?
    probe_delayed_verifier   does a verdict at the end reach the token that earned it, some tokens earlier?
    probe_turns              does the policy read what a world answers, and learn in both turns?

A model with random weights over printable characters writes a lower-case letter about one time in four and a
digit one time in ten, so that every probe can be climbed from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.errors import UserError
from partita.core.task import Outcome, Problem
from partita.tasks.language.base import LanguageTask
from partita.tasks.worlds.base import Episode, Reply, World

LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
DIGITS = frozenset("0123456789")


class LanguageProbe(LanguageTask):
    """Base of the single-turn probes: one prompt, a response of at most `max_tokens` characters."""

    best: ClassVar[str]  # a response that scores 1

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        return [Problem("?")] * n

    def demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None = None) -> str:
        """A response that scores 1."""
        return self.best

    @property
    def optimal_value(self) -> float:
        """Score of the best policy."""
        return 1.0


@dataclass(frozen=True)
class ProbeBandit(LanguageProbe):
    """One token: the score is 1 for a lower-case letter, else 0; V* = 1."""

    max_tokens: ClassVar[int] = 1
    best: ClassVar[str] = "a"

    def verify(self, problem: Problem, response: str) -> Outcome:
        """1 when the response is one lower-case letter."""
        return _judge(response in LOWER)


@dataclass(frozen=True)
class ProbeCredit(LanguageProbe):
    """Two tokens: half a point for a lower-case letter first, half a point for a digit second; V* = 1.

    A policy that writes the same in both places scores at most one half.
    """

    max_tokens: ClassVar[int] = 2
    best: ClassVar[str] = "a1"

    def verify(self, problem: Problem, response: str) -> Outcome:
        """The mean of both judgements."""
        first, second = response[:1] in LOWER, response[1:2] in DIGITS
        return Outcome((first + second) / 2, {"first": float(first), "second": float(second)})


@dataclass(frozen=True)
class ProbeDelayedVerifier(LanguageProbe):
    """The first token decides (a lower-case letter), the verdict comes `delay` tokens later; V* = 1.

    What is written in between is free, but a response that ends early scores 0. At most seven tokens of delay.
    """

    delay: int = 4

    max_tokens: ClassVar[int] = 8
    best: ClassVar[str] = "a" * 8

    def __post_init__(self) -> None:
        if not 0 <= self.delay < self.max_tokens:
            raise UserError(f"delay: expected 0 to {self.max_tokens - 1} tokens, got {self.delay}")

    def verify(self, problem: Problem, response: str) -> Outcome:
        """1 when the first of more than `delay` characters is a lower-case letter."""
        return _judge(response[:1] in LOWER and len(response) > self.delay)


@dataclass(frozen=True)
class ProbeTurns(World):
    """Two turns of one token: half a point for a lower-case letter, then half for the kind that the world asks for.

    The first reply shows `a` (a lower-case letter is wanted) or `1` (a digit is), each in half of the problems:
    V* = 1, and a policy that does not read the reply scores at most 3/4.
    """

    max_turns: int = 2

    hosted: ClassVar[bool] = False
    counts: ClassVar[tuple[str, ...]] = ()
    max_tokens: ClassVar[int] = 1
    stop: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.max_turns != 2:
            raise UserError(f"max_turns: probe_turns has 2, got {self.max_turns}; leave it out")

    @property
    def optimal_value(self) -> float:
        """Score of the best policy."""
        return 1.0

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        coins = torch.rand(n, generator=generator, device=generator.device).tolist()
        return [Problem("?", {"ask": "a" if coin < 0.5 else "1"}) for coin in coins]

    def open(self, problem: Problem) -> Episode:
        return _Turns(problem.data["ask"])

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        first, second = "a", problem.data["ask"]
        if flaw == "random":
            first, second = _draw("a1", generator), _draw("a1", generator)
        return [first, second]


class _Turns(Episode):
    """One episode of `ProbeTurns`."""

    def __init__(self, ask: str) -> None:
        self.ask, self.turn, self.score = ask, 0, 0.0
        self.state = "start"

    def act(self, action: str) -> Reply:
        if self.turn >= 2:
            return Reply("", 0.0, True, score=self.score)
        wanted = LOWER if self.turn == 0 or self.ask == "a" else DIGITS
        reward = 0.5 if action in wanted else 0.0
        self.turn += 1
        self.score += reward
        self.state = f"asked {self.ask}" if self.turn == 1 else "over"
        return Reply(f"{self.ask}>" if self.turn == 1 else "", reward, self.turn == 2, score=self.score)


def _judge(right: bool) -> Outcome:
    return Outcome(float(right), why="right" if right else "wrong")


def _draw(options: Sequence[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator, device=generator.device))]
