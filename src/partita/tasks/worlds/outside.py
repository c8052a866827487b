"""Worlds whose code is not ours: nothing of them runs in our process."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import Episode, World, check_limits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Outside(World):
    """Base of worlds that other people's code plays: a problem is a seed, and problems too are made in the workers.

    workers: processes that share the episodes. seconds: limit of one call of that code (a problem made, an episode
    opened, an action taken). memory_mb: limit of each process's address space (0: none). See `World`.

    A subclass implements `_problem(seed)`, `open(problem)` and `_script(problem, dice, flaw)`, all of which run in the
    worker; problems must be plain values that JSON can hold.
    """

    max_turns: int = 8
    workers: int = 2
    seconds: float = 10.0
    memory_mb: int = 0

    abstract: ClassVar[bool] = True
    slow: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise UserError(f"max_turns: {self.max_turns} is too few; set 1 or more")
        check_limits(self)

    def _problem(self, seed: int) -> Problem:
        """The problem of a seed."""
        raise NotImplementedError

    def _script(self, problem: Problem, dice: random.Random, flaw: str | None) -> list[str]:
        """The actions of the expert, or of the procedure `flaw`."""
        raise NotImplementedError

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems, of seeds drawn from the generator."""
        return [_unpacked(found) for found in self._hosts().each("problem", [[s] for s in seeds(n, generator)])]

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        return self._hosts().each("script", [[problem, *seeds(1, generator), flaw]])[0]["actions"]

    def _hosts(self) -> Any:
        from partita.tasks.worlds.hosts import hosts

        return hosts(self)


def scripted(world: Outside, episode: Episode, choose: Callable[[], str]) -> list[str]:
    """The actions of a scripted agent to the end of an episode, for `_script`; closes it."""
    actions: list[str] = []
    for _ in range(world.max_turns):
        actions.append(choose())
        if episode.act(actions[-1]).done:
            break
    episode.close()
    return actions


def seeds(n: int, generator: torch.Generator) -> list[int]:
    """n seeds drawn from the generator."""
    import torch

    return torch.randint(2**31 - 1, (n,), generator=generator, device=generator.device).tolist()


def _unpacked(held: Mapping[str, Any]) -> Problem:
    return Problem(held["prompt"], held["data"], held["category"], held["level"])
