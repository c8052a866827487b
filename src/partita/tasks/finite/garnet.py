"""Garnet: random processes, sparse and of any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from partita.tasks.control._checks import check_between, check_positive, refuse
from partita.tasks.finite.mdp import FiniteMDP
from partita.tasks.finite.task import Tabular


@dataclass(frozen=True)
class Garnet(Tabular):
    """GARNET(n, m, b) of Archibald, McKinnon and Thomas (1995), with Bhatnagar et al.'s (2009) rewards, by `seed`.

    Each of `actions` in each of `states` leads to `branches` different states, all sets alike likely; probabilities are
    the lengths into which branches - 1 even draws cut the unit interval; each transition pays a standard normal draw.
    Begins in the first state. Rewards have no noise (sigma = 0) and nothing changes in time (tau = 0). The papers were
    not read: the law is the one that later works quote.
    """

    states: int = 30
    actions: int = 4
    branches: int = 2
    seed: int = 0
    discount: float = 0.95
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_between(self, "discount", 0.0, 1.0)
        for name in ("states", "actions", "branches"):
            if getattr(self, name) < 1:
                raise refuse(self, name, getattr(self, name), "give 1 or more")
        if self.branches > self.states:
            raise refuse(self, "branches", self.branches, f"give at most the {self.states} states")
        if self.seed < 0:
            raise refuse(self, "seed", self.seed, "give 0 or more")

    @property
    def horizon(self) -> int:
        return self.max_steps

    def finite(self) -> FiniteMDP:
        generator, rows = np.random.default_rng(self.seed), self.states * self.actions
        into = subsets(rows, self.branches, self.states, generator)
        cuts = np.sort(generator.random((rows, self.branches - 1)), 1)
        chance = np.diff(cuts, axis=1, prepend=0.0, append=1.0)
        gain = generator.normal(size=(rows, self.branches))
        ends, shape = np.arange(rows + 1) * self.branches, (rows, self.states)
        transitions, gains = (sparse.csr_array((x.ravel(), into.ravel(), ends), shape=shape) for x in (chance, gain))
        reward, start = np.zeros((self.states, self.actions)), np.zeros(self.states)
        start[0] = 1.0
        return FiniteMDP(transitions, reward, start, self.discount, gains=gains)


def subsets(rows: int, count: int, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`rows` sets of `count` different numbers below `size`, (rows, count), all sets alike likely (Floyd's method)."""
    chosen = np.full((rows, count), -1)
    for i, top in enumerate(range(size - count, size)):
        drawn = generator.integers(0, top + 1, rows)
        taken = (chosen[:, :i] == drawn[:, None]).any(1)
        chosen[:, i] = np.where(taken, top, drawn)
    return chosen
