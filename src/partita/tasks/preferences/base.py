"""Tasks in which responses are compared rather than verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from partita.core.task import Problem
from partita.tasks.language.base import LanguageTask


@dataclass(frozen=True)
class Given:
    """The responses that a data set holds for a prompt.

    compared: (i, j, p, margin): the chance that response i is preferred to j, and by how much (nan: not said).
    labels: 1 desirable, 0 undesirable, nan not said; scores: nan where not said. unfinished: responses that were cut,
    and so do not show where to stop.
    """

    responses: tuple[str, ...]
    compared: tuple[tuple[int, int, float, float], ...] = ()
    labels: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    unfinished: tuple[bool, ...] = ()


class PreferenceTask(LanguageTask):
    """Base of preference tasks: prompts, responses given for them, and someone who prefers.

    size: prompts of the data set (0: none is given, responses must be sampled). judged: whether `prefer` and `verify`
    can judge new responses; where they cannot, only what is given can be learnt from. offers: what is given with the
    responses, of "compared", "labels" and "scores" (None: not known).
    """

    size: int = 0
    judged: ClassVar[bool] = False

    @property
    def offers(self) -> tuple[str, ...] | None:
        return None

    def held(self, n: int, generator: torch.Generator) -> list[Problem]:
        """Up to n problems that are kept from training, for tasks that cannot judge: what evaluation compares on."""
        return []

    def prompt(self, index: int) -> Problem:
        """The prompt of that index, 0 to size - 1."""
        raise NotImplementedError

    def given(self, problem: Problem) -> Given:
        """What the data hold for a prompt."""
        raise NotImplementedError

    def prefer(self, problem: Problem, responses: Sequence[str], generator: torch.Generator) -> Tensor:
        """(n, n): the probability that response i is preferred to response j; 1/2 on the diagonal."""
        raise NotImplementedError
