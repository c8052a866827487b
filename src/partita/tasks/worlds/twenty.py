"""A guessing game: find a hidden thing among many by questions about its properties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.task import Problem
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.generated import Dice, Generated

PROPERTIES = "neswpo"
COUNTS = " abcdefghijklmnopqrstuvwxyzABCDEF"  # how a number of things is written, 1 to 32
EVEN, UNEVEN, NOTHING = "#l."


@dataclass(frozen=True)
class Twenty(Generated):
    """Twenty questions, a few of them: each action asks whether the hidden thing has one of six properties.

    An action is the property's letter, one of `n e s w p o`. An observation is: how many things are still possible
    (a: 1, b: 2, ...); how many questions are left (9: nine or more); for each property in that order, whether it
    divides those things in halves (`#`), otherwise (`l`) or not at all (`.`):

        h4##ll#.>o      8 things; properties n, e and p have 4 of them each, s and w more or fewer, o none or all
        h3##ll#.>n      asking for o has told nothing
        d2.#ll#.>p      n has left 4 of them, and tells nothing more
        b1.###..>e      and this question finds the thing

    The answer, yes or no, is told by what remains. The episode ends with reward and score 1 when one thing remains, and
    as a failure after `max_turns` questions; a question that tells nothing is well formed, and any other text is
    answered by `?` and what was to be seen. Parts: "left" (things still possible), "asked" (questions).
    Levels 1 to 3 have 4, 8 and 16 things, which 2, 3 and 4 of the properties tell apart, and the hard level 4 has 32;
    each of the other properties belongs to one thing, or to none.
    """

    level: int = 0
    max_turns: int = 5

    max_tokens: ClassVar[int] = 4
    counts: ClassVar[tuple[str, ...]] = ("left", "asked")
    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    flaws: ClassVar[tuple[str, ...]] = ("random", "uneven", "repeat")

    def turns(self, level: int) -> int:
        """A question for each halving."""
        return level + 1

    def _problem(self, level: int, dice: Dice) -> Problem:
        halvings = level + 1
        order = dice.shuffled(range(len(PROPERTIES)))
        things = [0] * (1 << halvings)
        for bit, place in enumerate(order[:halvings]):
            for i in range(len(things)):
                things[i] |= (i >> bit & 1) << place
        for place in order[halvings:]:
            if dice.below(3):
                things[dice.below(len(things))] |= 1 << place
        data = {"things": things, "hidden": dice.below(len(things))}
        game = Game(Problem("", data), self.max_turns)
        return Problem(game.seen() + MARKER, data, f"things{len(things)}", level)

    def open(self, problem: Problem) -> Game:
        """A new game, nothing asked yet."""
        return Game(problem, self.max_turns)

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        """Asks what divides the things in halves (flaw None), or:

        random: any property; uneven: one that divides them otherwise, where there is one; repeat: two times in three
        the first property again.
        """
        dice = Dice(generator)

        def choose(episode: Episode) -> str:
            assert isinstance(episode, Game)
            marks = episode.marks()
            if flaw == "repeat" and episode.asked and dice.below(3):
                return episode.first + "\n"
            kinds = {"random": "", "uneven": UNEVEN, "repeat": ""}.get(flaw or "", EVEN)
            telling = [p for p, mark in zip(PROPERTIES, marks, strict=True) if mark == kinds]
            return dice.choice(telling or PROPERTIES) + "\n"

        return self.play(problem, choose)


class Game(Episode):
    """An episode of `Twenty`."""

    def __init__(self, problem: Problem, questions: int) -> None:
        self.things: Sequence[int] = problem.data["things"]
        self.hidden: int = self.things[problem.data["hidden"]]
        self.possible = list(self.things)
        self.left, self.asked, self.first = questions, 0, ""

    @property
    def state(self) -> str:  # type: ignore[override]
        """Canonical: all things, those still possible, the hidden one, and the questions left."""
        possible = ",".join(map(str, sorted(self.possible)))
        return f"{','.join(map(str, self.things))}|{possible}|{self.hidden}|{self.left}"

    def marks(self) -> str:
        """For each property, how it divides what is possible."""
        found = ""
        for place in range(len(PROPERTIES)):
            have = sum(thing >> place & 1 for thing in self.possible)
            lack = len(self.possible) - have
            found += EVEN if have == lack else UNEVEN if have and lack else NOTHING
        return found

    def seen(self) -> str:
        """What there is to read, without the marker."""
        return f"{COUNTS[len(self.possible)]}{min(max(self.left, 0), 9)}{self.marks()}"

    def act(self, action: str) -> Reply:
        """One question."""
        if len(self.possible) == 1:
            return self._reply("", 0.0)
        self.left -= 1
        command = action.strip()
        if len(command) != 1 or command not in PROPERTIES:
            return self._reply(MALFORMED, 0.0, valid=False)
        place = PROPERTIES.index(command)
        self.asked, self.first = self.asked + 1, self.first or command
        self.possible = [t for t in self.possible if t >> place & 1 == self.hidden >> place & 1]
        return self._reply("", float(len(self.possible) == 1))

    def _reply(self, sign: str, reward: float, valid: bool = True) -> Reply:
        done = len(self.possible) == 1
        parts = {"left": float(len(self.possible)), "asked": float(self.asked)}
        return Reply("" if done else sign + self.seen() + MARKER, reward, done, valid, float(done), parts)
