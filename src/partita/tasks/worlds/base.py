"""Multi-turn worlds: text goes in, text comes out, several times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.part import Domain
from partita.core.task import Problem, Task


@dataclass(frozen=True)
class Reply:
    """A world's answer to one action.

    observation: text the policy reads next ("" when done). reward: earned by this action.
    done: the episode is over. valid: the action was well formed. score: the outcome so far, 1.0 is success.
    """

    observation: str
    reward: float
    done: bool
    valid: bool = True
    score: float = 0.0


class Episode:
    """One running episode. `observation` is the first thing to read (after the problem's prompt)."""

    state: str  # canonical text of the current state; equal for equal states (hashed into `state_key`)

    def act(self, action: str) -> Reply:
        """Take one action. Malformed text is an observation that says so, never an exception."""
        raise NotImplementedError


class World(Task):
    """Base of multi-turn language tasks."""

    domain: ClassVar[Domain] = "language"
    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    max_tokens: ClassVar[int] = 16  # tokens of one action
    stop: ClassVar[tuple[str, ...]] = ("\n",)  # strings that end one action
    max_turns: int = 8

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems; `Problem.prompt` is what the policy reads before its first action."""
        raise NotImplementedError

    def open(self, problem: Problem) -> Episode:
        """A new episode of the problem, deterministic in it."""
        raise NotImplementedError
