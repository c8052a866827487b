"""`Tabular`: control tasks that are finite decision processes, to be solved exactly and to be learnt in."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from partita.core.spaces import Discrete, Space
from partita.tasks.control._draws import uniform
from partita.tasks.control.base import Native
from partita.tasks.finite.mdp import FiniteMDP

TINY = 1e-9


@dataclass(frozen=True)
class Tables:
    """Where each pair of state and action leads to.

    chance (S * A, K) cumulative probabilities of up to K next states, into (S * A, K) int64, gain (S * A, K) rewards;
    starts (S,) cumulative; over (S,) bool, the states that are never left and pay nothing; allowed (S, A) bool.
    """

    chance: Tensor
    into: Tensor
    gain: Tensor
    starts: Tensor
    over: Tensor
    allowed: Tensor

    def to(self, device: torch.device | str) -> Tables:
        """A copy on another device."""
        return Tables(**{name: value.to(device) for name, value in vars(self).items()})


class Tabular(Native):
    """Base of tasks whose `finite` gives the whole process. State: one index (n,) int64. Observation: one-hot.

    Episodes end in a state that is never left and pays nothing, and are cut after `horizon` steps. An action that does
    not exist in a state counts as the first that does.
    """

    abstract: ClassVar[bool] = True

    def finite(self) -> FiniteMDP:
        """The process as tables."""
        raise NotImplementedError

    @functools.cached_property
    def process(self) -> FiniteMDP:
        """The process, made once."""
        return self.finite()

    @functools.cached_property
    def _moved(self) -> dict[str, Tables]:
        return {"cpu": tables(self.process)}

    def _on(self, device: torch.device | str) -> Tables:
        name = str(device)
        if name not in self._moved:
            self._moved[name] = self._moved["cpu"].to(device)
        return self._moved[name]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.process.size,)

    @property
    def action_space(self) -> Space:
        return Discrete(self.process.choices)

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """First states, (n,) int64."""
        starts = self._on(device).starts
        return torch.searchsorted(starts, uniform((n,), 0.0, 1.0, generator, device).double(), right=True)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One decision; `action` is (n,) int64."""
        table = self._on(state.device)
        exists = table.allowed[state]
        action = torch.where(exists.gather(1, action[:, None])[:, 0], action, exists.to(torch.int8).argmax(1))
        row = state * exists.shape[1] + action
        drawn = uniform((state.shape[0], 1), 0.0, 1.0, generator, state.device).double()
        which = torch.searchsorted(table.chance[row], drawn, right=True)
        following = table.into[row].gather(1, which)[:, 0]
        return following, table.gain[row].gather(1, which)[:, 0], table.over[following]

    def observe(self, state: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(state, self.process.size).float()


def tables(mdp: FiniteMDP) -> Tables:
    """What drawing next states needs."""
    size, choices = mdp.reward.shape
    chance = sparse.csr_array(mdp.transitions)
    chance.eliminate_zeros()
    count = np.diff(chance.indptr)
    width = max(int(count.max()), 1)
    column = np.arange(width) < count[:, None]
    into, into_chance = np.zeros((size * choices, width), int), np.zeros((size * choices, width))
    into[column], into_chance[column] = chance.indices, chance.data
    gain = np.repeat(mdp.reward.reshape(-1, 1), width, 1)
    if mdp.gains is not None:
        rows = np.repeat(np.arange(size * choices), count)
        gain[column] = np.asarray(sparse.csr_array(mdp.gains)[rows, chance.indices]).ravel()
    upto = into_chance.cumsum(1)
    upto[~column | (upto > 1 - TINY)] = 1.0  # the last next state takes what rounding leaves
    stays = (into_chance * (into == np.repeat(np.arange(size), choices)[:, None])).sum(1) > 1 - TINY
    exists = np.ones((size, choices), bool) if mdp.allowed is None else mdp.allowed
    idle = stays.reshape(size, choices) & (mdp.reward == 0)
    return Tables(
        chance=torch.from_numpy(upto), into=torch.from_numpy(into), gain=torch.from_numpy(gain).float(),
        starts=torch.from_numpy(_upto_one(mdp.start.cumsum())), over=torch.from_numpy((idle | ~exists).all(1)),
        allowed=torch.from_numpy(exists),
    )  # fmt: skip


def _upto_one(cumulative: np.ndarray) -> np.ndarray:
    """The same with what rounding leaves given to the last entry that has any chance."""
    return np.where(cumulative > 1 - TINY, 1.0, cumulative)


@dataclass(frozen=True)
class Given(Tabular):
    """A process that is at hand, as an environment. discount is the process's own. max_steps: where it has no end."""

    abstract: ClassVar[bool] = True
    given: FiniteMDP
    max_steps: int = 200

    @property
    def horizon(self) -> int:
        return self.given.horizon or self.max_steps

    def finite(self) -> FiniteMDP:
        return self.given
