"""Action spaces: what a control policy may do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Discrete:
    """One of `n` actions; actions are int64 tensors of shape (...,)."""

    n: int


@dataclass(frozen=True)
class MultiDiscrete:
    """One choice per entry of `choices`; actions are int64 tensors of shape (..., len(choices))."""

    choices: tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """Real vectors of `size` numbers between `low` and `high` (per entry); actions are float tensors (..., size).

    Environments clip what lies outside; infinite bounds are allowed.
    """

    size: int
    low: tuple[float, ...]
    high: tuple[float, ...]


Space = Discrete | MultiDiscrete | Box
