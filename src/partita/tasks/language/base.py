"""Language tasks: problems with verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from partita.core.part import Domain
from partita.core.task import Outcome, Problem, Task


class LanguageTask(Task):
    """Base of single-turn language tasks: a frozen dataclass of settings (levels, categories).

    `levels` and `categories` name what a curriculum can choose between (empty where there is nothing to choose).
    """

    domain: ClassVar[Domain] = "language"
    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    max_tokens: ClassVar[int] = 64  # default length of a response, in tokens of a character-level model
    stop: ClassVar[tuple[str, ...]] = ()  # strings that end a response (kept in the text)

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems, the same for the same generator state."""
        raise NotImplementedError

    def verify(self, problem: Problem, response: str) -> Outcome:
        """What the response is worth. Pure; never raises on any string."""
        raise NotImplementedError

    def verify_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Outcome]:
        """Verify many; a task whose verifier is slow may run them in parallel."""
        return [self.verify(p, r) for p, r in zip(problems, responses, strict=True)]
