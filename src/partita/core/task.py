"""`Task`: what a policy acts on. `Problem` and `Outcome`: one question, and what an answer was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from partita.core.part import Domain, Part


class Task(Part):
    """Base of every task; a frozen dataclass of its settings. `domain` decides which rollouts apply."""

    slot: ClassVar[str] = "task"
    domain: ClassVar[Domain]

    def met(self, policy: Any) -> Self:
        """The task as this policy will see it: a task whose data wait for a tokenizer prepares them here.

        Called before anything is evaluated, trained or written; meeting the same policy again costs nothing.
        """
        return self

    def notes(self) -> tuple[str, ...]:
        """What a person should know of the task before it is used, one line each: rows left out, for instance."""
        return ()


@dataclass(frozen=True)
class Problem:
    """One question: a prompt for people and policies, and what the verifier needs to judge an answer."""

    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""
    level: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a response was worth: `score` (1.0 is solved), the parts of the score, and why, in words."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
