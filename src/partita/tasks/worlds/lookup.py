"""Questions whose answer is several look-ups away."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.generated import Dice, Generated

LETTERS = "abcdefghijklmnopqrst"
ENTITIES = [a + b for a in LETTERS for b in LETTERS]
RELATIONS = "xyz"
HOPS = {1: 1, 2: 2, 3: 3, 4: 5}
GET = re.compile(f"get ([{LETTERS}]{{2}})\\.([{RELATIONS}])")
ANSWER = re.compile(f"ans ([{LETTERS}]{{2}})")

Fact = tuple[str, str]  # an entity and a relation


@dataclass(frozen=True)
class Lookup(Generated):
    """A chain of relations to follow with a look-up tool: `get mo.x` asks for relation x of mo, `ans qa` answers.

    Three relations hold between 400 entities of two letters, a table that only the tool can see. A question of
    k hops needs k look-ups, each of what the one before has found:

        mo.xz?>get mo.x     the question: relation z of relation x of mo
        db>get db.z
        qa>ans qa

    An answer ends the episode: reward and score 1 if right, else 0. Each look-up costs `call_cost`. Other
    text is answered by `?`. Parts: "calls" (look-ups), "needed" (those that the question takes).
    The state is what is known: the question and the facts that were looked up, in whatever order.
    Levels 1 to 3 have as many hops; the hard level 4 has five. Guessing is right once in about 400.
    """

    level: int = 0
    max_turns: int = 8
    call_cost: float = 0.0

    counts: ClassVar[tuple[str, ...]] = ("calls", "needed")
    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    flaws: ClassVar[tuple[str, ...]] = ("random", "early", "overshoot", "wrong_relation", "guess")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.call_cost) and self.call_cost >= 0):
            raise UserError(f"call_cost: {self.call_cost} is not a finite cost of 0 or more; choose 0.05, say")

    def turns(self, level: int) -> int:
        """A look-up a hop, and the answer."""
        return HOPS[level] + 1

    def _problem(self, level: int, dice: Dice) -> Problem:
        hops = HOPS[level]
        chain: list[str] = []
        while len(chain) <= hops:
            if (entity := dice.choice(ENTITIES)) not in chain:
                chain.append(entity)
        path = "".join(dice.choice(RELATIONS) for _ in range(hops))
        links = {f"{chain[k]}.{relation}": chain[k + 1] for k, relation in enumerate(path)}
        table = dice.below(2**32)
        data = {"start": chain[0], "path": path, "answer": chain[-1], "links": links, "table": table}
        return Problem(f"{chain[0]}.{path}?{MARKER}", data, f"hops{hops}", level)

    def open(self, problem: Problem) -> Search:
        """A new episode of the question, nothing looked up yet."""
        return Search(problem, self.call_cost)

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        """Looks up each hop and answers (flaw None), or:

        random: any look-up or answer; early: answers one hop too soon; overshoot: follows the last relation
        once more; wrong_relation: takes another relation at one hop; guess: answers at once.
        """
        dice = Dice(generator)
        path = problem.data["path"]
        if flaw == "random":
            return _random(dice, self.max_turns)
        if flaw == "guess":
            return [f"ans {dice.choice(ENTITIES)}\n"]
        if flaw == "early":
            path = path[:-1]
        elif flaw == "overshoot":
            path = (path + path[-1])[: self.max_turns]
        elif flaw == "wrong_relation":
            i = dice.below(len(path))
            path = path[:i] + dice.choice(RELATIONS.replace(path[i], "")) + path[i + 1 :]
        here, actions = problem.data["start"], []
        for relation in path:
            actions.append(f"get {here}.{relation}\n")
            here = look_up(problem, here, relation)
        return [*actions, f"ans {here}\n"][: self.max_turns]


def look_up(problem: Problem, entity: str, relation: str) -> str:
    """The entity that stands in `relation` to `entity`, never itself.

    The links of the question's chain are kept in the problem; all others follow from the number of its table.
    """
    fact = f"{entity}.{relation}"
    if there := problem.data["links"].get(fact):
        return str(there)
    drawn = hashlib.blake2b(f"{problem.data['table']}/{fact}".encode(), digest_size=8).digest()
    further = 1 + int.from_bytes(drawn, "big") % (len(ENTITIES) - 1)
    first, second = map(LETTERS.index, entity)
    return ENTITIES[(first * len(LETTERS) + second + further) % len(ENTITIES)]


def _random(dice: Dice, turns: int) -> list[str]:
    actions: list[str] = []
    while len(actions) < turns and not (actions and actions[-1].startswith("ans")):
        if dice.below(2):
            actions.append(f"get {dice.choice(ENTITIES)}.{dice.choice(RELATIONS)}\n")
        else:
            actions.append(f"ans {dice.choice(ENTITIES)}\n")
    return actions


class Search(Episode):
    """An episode of `Lookup`."""

    def __init__(self, problem: Problem, call_cost: float) -> None:
        self.problem = problem
        self.call_cost = call_cost
        self.calls = 0
        self.known: set[Fact] = set()
        self.answer = ""

    @property
    def state(self) -> str:  # type: ignore[override]
        """The question, the table, the facts known, and the answer once given."""
        data = self.problem.data
        links = ",".join(f"{fact}>{there}" for fact, there in data["links"].items())
        return f"{data['start']}.{data['path']}|{links}/{data['table']}|{_written(self.known)}|{self.answer}"

    def act(self, action: str) -> Reply:
        """One look-up or the answer."""
        command = action.strip()
        if self.answer:
            return self._reply("", 0.0)
        if found := GET.fullmatch(command):
            self.calls += 1
            self.known.add((found[1], found[2]))
            return self._reply(look_up(self.problem, found[1], found[2]), -self.call_cost)
        if found := ANSWER.fullmatch(command):
            self.answer = found[1]
            return self._reply("", self._score())
        return self._reply(MALFORMED, 0.0, valid=False)

    def _score(self) -> float:
        return float(self.answer == self.problem.data["answer"])

    def _reply(self, text: str, reward: float, valid: bool = True) -> Reply:
        done = bool(self.answer)
        parts = {"calls": float(self.calls), "needed": float(len(self.problem.data["path"]))}
        return Reply("" if done else text + MARKER, reward, done, valid, self._score(), parts)


def _written(facts: Iterable[Fact]) -> str:
    return ",".join(f"{entity}.{relation}" for entity, relation in sorted(facts))
