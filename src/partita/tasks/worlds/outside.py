"""Worlds whose code is not ours: they live in processes of their own, which may hang or die without harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import Broken, Episode, Reply, World

if TYPE_CHECKING:
    import torch

inside = False  # true in a worker process, where episodes are opened as they are


@dataclass(frozen=True)
class Outside(World):
    """Base of worlds that other people's code plays: a problem is a seed, and episodes run in worker processes.

    workers: processes that share the episodes. seconds: limit of one call of that code (a problem made, an episode
    opened, an action taken). memory_mb: limit of each process's address space (0: none).

    A call that raises, hangs beyond `seconds` or kills its process costs the episode that made it. Other episodes of a
    killed process are played again from their actions, in the next process, when their turn comes; one that then goes
    another way was not deterministic and is over. Nothing of the world runs in our process.

    A subclass implements `_problem(seed)`, `_open(problem)` and `_script(problem, seed, flaw)`, all of which run in the
    worker; problems and replies must be plain values that JSON can hold.
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
        if self.workers < 1:
            raise UserError(f"workers: expected 1 process or more, got {self.workers}")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds: {self.seconds} is no time limit; choose a number above 0, such as 10")
        if self.memory_mb < 0:
            raise UserError(f"memory_mb: {self.memory_mb} is no memory limit; choose 0 for none, or 1024, say")

    def _problem(self, seed: int) -> Problem:
        """The problem of a seed."""
        raise NotImplementedError

    def _open(self, problem: Problem) -> Episode:
        """A new episode of the problem."""
        raise NotImplementedError

    def _script(self, problem: Problem, dice: random.Random, flaw: str | None) -> list[str]:
        """The actions of the expert, or of the procedure `flaw`."""
        raise NotImplementedError

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems, of seeds drawn from the generator."""
        return [unpacked(found) for found in self._hosts().each("problem", seeds(n, generator))]

    def open(self, problem: Problem) -> Episode:
        """A new episode of the problem, in a worker."""
        return self._open(problem) if inside else Proxy(self._hosts(), problem)

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        return self._hosts().each("script", [[packed(problem), *seeds(1, generator), flaw]])[0]["actions"]

    def _hosts(self) -> Any:
        from partita.tasks.worlds.hosts import hosts

        return hosts(self)


class Proxy(Episode):
    """An episode that runs in a worker; what it has done is remembered here, so that it can be played again."""

    def __init__(self, hosts: Any, problem: Problem) -> None:
        self._host = hosts.next()
        self._problem = packed(problem)
        self._actions: list[str] = []
        found = self._host.call("open", self._problem)
        self._number, self._born = found["number"], found["born"]
        self.observation, self.state = found["observation"], found["state"]

    def _again(self) -> None:
        """Open it again and repeat its actions, after its process was killed for another episode's sake."""
        before, state = (self.observation, self.state), ""
        found = self._host.call("open", self._problem)
        for action in self._actions:
            state = self._host.call("act", [found["number"], action], found["born"])["state"]
        if (found["observation"], state if self._actions else found["state"]) != before:
            raise Broken("it went another way when played again; make it deterministic in its problem")
        self._number, self._born = (
            found["number"],
            found["born"],
        )  # only now: this may be interrupted

    def act(self, action: str) -> Reply:
        """One action, in the worker."""
        from partita.tasks.worlds.hosts import Renewed

        while True:
            try:
                if self._host.born != self._born:
                    self._again()
                found = self._host.call("act", [self._number, action], self._born)
                break
            except Renewed:
                continue
        self._actions.append(action)
        self.state = found.pop("state")
        return Reply(**found)

    def close(self) -> None:
        """Let the worker forget the episode."""
        if self._host.born == self._born:
            self._host.call("close", [self._number], self._born)


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


def packed(problem: Problem) -> dict[str, Any]:
    """A problem as JSON holds it."""
    return asdict(problem)


def unpacked(held: Mapping[str, Any]) -> Problem:
    """Undo `packed`."""
    return Problem(held["prompt"], held["data"], held["category"], held["level"])
