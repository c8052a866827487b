"""Sokoban in text: push every box onto a goal; boxes cannot be pulled, so a careless push may lose the game."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.generated import Dice, Generated
from partita.tasks.worlds.rooms import MOVES, Place, Room, deadlocked, draw, parse

if TYPE_CHECKING:
    import torch

COLUMNS, ROWS = "abcdefghijklmnop", "0123456789"
LEVELS = {  # level: size, boxes, walls, fewest and most moves of a shortest solution
    1: (4, 1, 2, 3, 10),
    2: (5, 1, 4, 6, 14),
    3: (5, 2, 3, 8, 18),
    4: (6, 3, 5, 12, 24),
}


@dataclass(frozen=True)
class Sokoban(Generated):
    """A room with boxes to push onto goals; actions `n`, `e`, `s`, `w` walk, and push a box that is in the way.

    The prompt is the room, its rows joined by `/`, with the usual signs: `#` wall, `-` floor, `.` goal, `$` box,
    `*` box on a goal, `@` agent, `+` agent on a goal; there is a wall around it. An observation is column and row of
    the agent, and what the two cells to the north, east, south and west of it hold (nearest first):

        ----/-$--/@-.-/----       the room
        a3---.-###>n              from a3: north floor, floor; east floor, goal; south floor, wall; west wall
        a2-#$---##>e              a box is to the east of a2, and floor behind it: push it
        b2-#$----#>n
        b1##-----#>e
        c1##-#$.-->s              and this push reaches the goal

    view: "near" is that; "room" shows the whole room again, which takes three times the text but leaves nothing to
    remember. An action without effect is well formed; any other text is answered by `?` and what is seen.

    Reward 1 when every box is on a goal, and `milestone` for each box that comes to a goal, taken back when it
    leaves. Score 1 at the end. A position that can no longer be solved does not end the episode. Parts: "boxes" (on
    goals), "pushes", "deadlock" (1 where no sequence of actions solves it any more, found by exact search), "optimal".
    `problem.data["optimal"]` is the length of a shortest solution, in actions. The state is the room, agent and boxes.
    Level 1 has 4x4 cells and a box, level 2 5x5 and one, level 3 5x5 and two, the hard level 4 6x6 and three.
    """

    level: int = 0
    max_turns: int = 24
    view: Literal["near", "room"] = "near"
    milestone: float = 0.0

    max_tokens: ClassVar[int] = 4
    counts: ClassVar[tuple[str, ...]] = ("boxes", "pushes", "deadlock", "optimal")
    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    flaws: ClassVar[tuple[str, ...]] = ("random", "greedy", "slip", "wander")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.view not in ("near", "room"):
            raise UserError(f"view: {self.view!r} is no view of sokoban; choose near or room")
        if not math.isfinite(self.milestone):
            raise UserError(f"milestone: {self.milestone} is not a finite reward; choose a number such as 0.1")

    def turns(self, level: int) -> int:
        """The longest shortest solution of a level."""
        return LEVELS[level][4]

    def _problem(self, level: int, dice: Dice) -> Problem:
        room, place, solution = draw(dice, *LEVELS[level])
        text = room.text(place)
        prompt = text + MARKER if self.view == "room" else f"{text}\n{seen(room, place)}{MARKER}"
        return Problem(prompt, {"room": text, "optimal": len(solution)}, f"boxes{place[1].bit_count()}", level)

    def open(self, problem: Problem) -> Pushing:
        """A new episode at the start of the problem's room."""
        return Pushing(problem, self.view, self.milestone)

    def solve(self, problem: Problem) -> list[str]:
        """A shortest list of actions that solves the problem."""
        room, place = parse(problem.data["room"])
        return [f"{move}\n" for move in room.solve(place) or ""]

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        """A shortest solution (flaw None), or:

        random: any move; greedy: of the pushes that bring a box nearer to a free goal, the one with the shortest way
        there, whatever it blocks; slip: one random move comes in between, and the rest of a solution is done as though
        it had not; wander: two moves in three are random.
        """
        dice = Dice(generator)
        if flaw == "slip":
            actions = self.solve(problem)
            actions.insert(dice.below(len(actions)), f"{dice.choice(MOVES)}\n")
            return actions[: self.max_turns]
        if flaw is None:
            return self.solve(problem)

        def choose(episode: Episode) -> str:
            assert isinstance(episode, Pushing)
            return _flawed(episode.room, episode.place, flaw, dice) + "\n"

        return self.play(problem, choose)


class Pushing(Episode):
    """An episode of `Sokoban`; `state` is the room with agent and boxes."""

    def __init__(self, problem: Problem, view: str, milestone: float) -> None:
        self.room, self.place = parse(problem.data["room"])
        self.optimal = float(problem.data["optimal"])
        self.view = view
        self.milestone = milestone
        self.pushes = 0
        self.lost = self._lost()

    @property
    def state(self) -> str:  # type: ignore[override]
        """Canonical: equal exactly when walls, goals, agent and boxes are."""
        return self.room.text(self.place)

    def act(self, action: str) -> Reply:
        """One step; the episode is done when every box is on a goal."""
        if self.room.solved(self.place):
            return self._reply("", 0.0)
        command = action.strip()
        if command not in MOVES:
            return self._reply(MALFORMED, 0.0, valid=False)
        before, self.place = self.place, self.room.step(self.place, command)
        if self.place[1] != before[1]:  # walking alone loses nothing
            self.pushes += 1
            self.lost = self._lost()
        gained = self.room.placed(self.place) - self.room.placed(before)
        return self._reply("", float(self.room.solved(self.place)) + self.milestone * gained)

    def _lost(self) -> bool:
        return deadlocked(self.room, min(self.room.reach(self.place)), self.place[1])

    def _reply(self, sign: str, reward: float, valid: bool = True) -> Reply:
        room, place = self.room, self.place
        done = room.solved(place)
        shown = room.text(place) if self.view == "room" else seen(room, place)
        parts = {
            "boxes": float(room.placed(place)),
            "pushes": float(self.pushes),
            "deadlock": float(self.lost),
            "optimal": self.optimal,
        }
        return Reply("" if done else sign + shown + MARKER, reward, done, valid, float(done), parts)


def seen(room: Room, place: Place) -> str:
    """Column and row of the agent, and the two cells to the north, east, south and west of it."""
    row, column = divmod(place[0], room.width + 2)
    sides = ""
    for delta in room.deltas:
        near = place[0] + delta
        sides += room.symbol(place, near)
        sides += "#" if room.outside(near) else room.symbol(place, near + delta)
    return f"{COLUMNS[column - 1]}{row}{sides}"


def _flawed(room: Room, place: Place, flaw: str, dice: Dice) -> str:
    if flaw == "random" or (flaw == "wander" and dice.below(3)):
        return dice.choice(MOVES)
    if flaw == "wander":
        lost = deadlocked(room, min(room.reach(place)), place[1])
        return dice.choice(MOVES) if lost else (room.solve(place) or MOVES[0])[0]
    ways = [way for box, to, way in room.pushes(place) if room.distance(to, place[1]) < room.distance(box, place[1])]
    if not ways:
        return dice.choice(MOVES)
    return dice.choice([way for way in ways if len(way) == min(map(len, ways))])[0]
