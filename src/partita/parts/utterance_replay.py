"""`UtteranceReplay`: a bounded memory of utterances, kept as the trajectories that they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from partita.policies.utterances import Utterances

NAMES = tuple(f.name for f in fields(Utterances))


class UtteranceReplay:
    """The latest trajectories that hold at most `capacity` utterances together, in tables that are written in place.

    A trajectory holds, for each of its utterances, the history before it, the utterance, its reward, the next history
    (the one before the next utterance) and whether it was the last: one table of tokens serves them all.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.first, self.size, self.utterances = 0, 0, 0
        self._tables: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Trajectories that are held."""
        return self.size

    def add(self, new: Utterances) -> None:
        """Take trajectories in; the oldest make room. Those without an utterance are left out."""
        new = new[new.count > 0]
        left = self.capacity - new.count.flip(0).cumsum(0).flip(0)  # after this trajectory and all later ones
        new = new[(left >= 0) | (torch.arange(len(new), device=left.device) == len(new) - 1)].trimmed()
        if not len(new):
            return
        coming = int(new.count.sum())
        while self.size and self.utterances + coming > self.capacity:
            self.utterances -= int(self._tables["count"][self.first])
            self.first, self.size = (self.first + 1) % self._rows, self.size - 1
        self._make_room(new)
        new = new.widened(self._tables["tokens"].shape[1], self._tables["history"].shape[1])
        slots = self._slots(torch.arange(self.size, self.size + len(new), device=new.count.device))
        for name, table in self._tables.items():
            table[slots] = getattr(new, name).to(table.dtype)
        self.size, self.utterances = self.size + len(new), self.utterances + coming

    @property
    def _rows(self) -> int:
        return self._tables["count"].shape[0]

    def _slots(self, age: Tensor) -> Tensor:
        """The rows of the tables where trajectories stand, counted from the oldest."""
        return (self.first + age) % self._rows

    def _make_room(self, new: Utterances) -> None:
        """Tables that fit: rows double, as far as the capacity can need them; columns grow to the widest."""
        old, need = self._tables, self.size + len(new)
        rows = self._rows if old else 0
        width, turns = (max(t.shape[1], old[n].shape[1] if old else 0) for t, n in self._wide(new))
        fits = bool(old) and rows >= need and (width, turns) == (old["tokens"].shape[1], old["history"].shape[1])
        if fits:
            return
        rows = rows if rows >= need else max(need, min(2 * rows, self.capacity))
        held = self.take(torch.arange(self.size)) if self.size else new[new.count < 0]
        held = held.widened(width, turns)
        self._tables, self.first = {}, 0
        for name in NAMES:
            value = getattr(held, name)
            dtype = torch.int32 if name == "tokens" else value.dtype
            self._tables[name] = torch.zeros(rows, *value.shape[1:], dtype=dtype, device=value.device)
            self._tables[name][: len(held)] = value.to(dtype)

    @staticmethod
    def _wide(new: Utterances) -> tuple[tuple[Tensor, str], tuple[Tensor, str]]:
        return (new.tokens, "tokens"), (new.history, "history")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` trajectories at random with replacement, (count,), numbered from the oldest.

        All are equally likely, so that all utterances are too.
        """
        return torch.randint(self.size, (count,), generator=generator, device=generator.device)

    def take(self, rows: Tensor) -> Utterances:
        """The trajectories of these numbers (n,)."""
        slots = self._slots(rows.to(self._tables["count"].device))
        found = {name: table[slots] for name, table in self._tables.items()}
        return Utterances(**{**found, "tokens": found["tokens"].long()}).trimmed()

    def state_dict(self) -> dict[str, Any]:
        """What is held, from the oldest."""
        if not self.size:
            return {}
        held = self.take(torch.arange(self.size))
        return {name: getattr(held, name) for name in NAMES}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.first, self.size, self.utterances, self._tables = 0, 0, 0, {}
        if state:
            self.add(Utterances(**{name: state[name] for name in NAMES}))
