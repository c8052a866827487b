"""Parts that make runs ill, for the tests of the doctor; named by file, as a user's own parts are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from partita.parts.reward import Reward
from partita.parts.rollout import Sample


@dataclass(frozen=True)
class PaysForLength(Reward):
    """A reward that is not the task's: a point for every eight tokens."""

    def __call__(self, batch: Any) -> Any:
        return batch.mask.to(batch.need("reward").dtype) / 8


@dataclass(frozen=True)
class Outliers(Reward):
    """The task's reward, times a thousand in every fifteenth batch."""

    _seen: list[int] = field(init=False, repr=False, compare=False, default_factory=list)

    def __call__(self, batch: Any) -> Any:
        self._seen.append(1)
        return batch.need("reward") * (1000.0 if len(self._seen) % 15 == 0 else 1.0)


@dataclass(frozen=True)
class Late(Sample):
    """Hands out the batch that was sampled `late` steps ago."""

    late: int = 6
    _held: list[Any] = field(init=False, repr=False, compare=False, default_factory=list)

    def __call__(self, *given: Any) -> Any:
        self._held.append(super().__call__(*given))
        return self._held.pop(0) if len(self._held) > self.late else self._held[0]
