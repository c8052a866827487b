"""A gridworld in text: find the key, open its door, reach the goal; the reward comes only at the goal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.generated import Dice, Generated
from partita.tasks.worlds.maze import ACTIONS, MOVES, Maze, Place, draw, parse

KEYS = "klm"
LEVELS = {  # level: size, keys, passages beyond a tree, longest shortest solution
    1: (3, 1, 2, 8),
    2: (4, 1, 4, 10),
    3: (4, 2, 4, 14),
    4: (5, 3, 4, 20),
}


@dataclass(frozen=True)
class Keydoor(Generated):
    """A maze with keys and doors; actions `n`, `e`, `s`, `w`, `p` (pick up), `o` (open what is beside).

    The prompt names the cells of the goal and of the keys (unless `hints` is off), then what is seen at the start.
    An observation is: column and row; what is north, east, south and west (`#` wall, `.` way, `K` closed door);
    the key underfoot or `.`; the keys held (`k`), or used (`K`, its door is open):

        *b1 ka3         the goal is at column b, row 1; key k lies at column a, row 3
        a2##.#.>s       the start is a2: walls north, east and west, a way south, no key here
        a3.K##k>p       a closed door to the east, key k underfoot
        a3.K##.k>o
        a3..##.K>e
        b3..#..K>n
        b2...#.K>n      and this step reaches the goal

    An action without effect (a wall) is well formed; any other text is answered by `?` and what is seen.
    Reward 1 at the goal, and `milestone` for each key picked up and each door opened. Score 1 at the goal.
    Parts: "keys", "doors". Observation and prompt together determine the state, but not the walls further away.
    Levels 1 to 3 have 3x3 cells with a key, 4x4 with one, 4x4 with two; the hard level 4 has 5x5 with three.
    """

    level: int = 0
    max_turns: int = 20
    hints: bool = True
    milestone: float = 0.0

    max_tokens: ClassVar[int] = 4
    counts: ClassVar[tuple[str, ...]] = ("keys", "doors")
    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    flaws: ClassVar[tuple[str, ...]] = ("random", "forget_key", "forget_open", "greedy", "wander")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.milestone):
            raise UserError(f"milestone: {self.milestone} is not a finite reward; choose a number such as 0.1")

    def turns(self, level: int) -> int:
        """The longest shortest solution of a level."""
        return LEVELS[level][3]

    def _problem(self, level: int, dice: Dice) -> Problem:
        maze = draw(dice, *LEVELS[level])
        prompt = _view(maze, maze.first) + MARKER
        if self.hints:
            keys = "".join(f" {KEYS[i]}{_name(cell, maze)}" for i, cell in enumerate(maze.keys))
            prompt = f"*{_name(maze.goal, maze)}{keys}\n{prompt}"
        return Problem(prompt, {"maze": maze.text}, f"keys{len(maze.keys)}", level)

    def open(self, problem: Problem) -> Walk:
        """A new episode at the start of the problem's maze."""
        return Walk(parse(problem.data["maze"]), self.milestone)

    def solve(self, problem: Problem) -> list[str]:
        """A shortest list of actions to the goal; its length is the optimum."""
        maze = parse(problem.data["maze"])
        return [f"{action}\n" for action in maze.plan(maze.first)]

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        """The shortest solution (flaw None), or:

        random: any action; forget_key: the shortest way as though there were no doors, a random move where one
        stands; forget_open: fetches the keys and never opens; greedy: moves towards what it needs next by
        coordinates alone, walls or not; wander: two actions in three are random.
        """
        if flaw is None:
            return self.solve(problem)
        dice = Dice(generator)

        def choose(episode: Episode) -> str:
            assert isinstance(episode, Walk)
            return _flawed(episode.maze, episode.place, flaw, dice) + "\n"

        return self.play(problem, choose)


class Walk(Episode):
    """An episode of `Keydoor`; `state` is the maze, the cell, the keys picked up and the doors opened."""

    def __init__(self, maze: Maze, milestone: float) -> None:
        self.maze = maze
        self.place: Place = maze.first
        self.milestone = milestone

    @property
    def state(self) -> str:  # type: ignore[override]
        """Canonical: equal exactly when maze, cell, keys and doors are."""
        cell, picked, opened = self.place
        return f"{self.maze.text}|{cell}|{picked}|{opened}"

    def act(self, action: str) -> Reply:
        """One step; the episode is done at the goal."""
        if self.place[0] == self.maze.goal:
            return self._reply("", 0.0)
        command = action.strip()
        if command not in ACTIONS:
            return self._reply(MALFORMED, 0.0, valid=False)
        before, self.place = self.place, self.maze.step(self.place, command)
        gained = sum(now.bit_count() - was.bit_count() for was, now in zip(before[1:], self.place[1:], strict=True))
        return self._reply("", float(self.place[0] == self.maze.goal) + self.milestone * gained)

    def _reply(self, sign: str, reward: float, valid: bool = True) -> Reply:
        done = self.place[0] == self.maze.goal
        parts = {"keys": float(self.place[1].bit_count()), "doors": float(self.place[2].bit_count())}
        seen = "" if done else sign + _view(self.maze, self.place) + MARKER
        return Reply(seen, reward, done, valid, float(done), parts)


def _name(cell: int, maze: Maze) -> str:
    row, column = divmod(cell, maze.size)
    return f"{'abcde'[column]}{row + 1}"


def _view(maze: Maze, place: Place) -> str:
    cell, picked, opened = place
    sides = ""
    for beyond, door in maze.exits[cell]:
        closed = door >= 0 and not opened >> door & 1
        sides += "#" if beyond < 0 else KEYS[door].upper() if closed else "."
    here = "".join(KEYS[i] for i, key in enumerate(maze.keys) if key == cell and not picked >> i & 1) or "."
    held = "".join(KEYS[i].upper() if opened >> i & 1 else KEYS[i] for i in range(len(maze.keys)) if picked >> i & 1)
    return _name(cell, maze) + sides + here + held


def _flawed(maze: Maze, place: Place, flaw: str, dice: Dice) -> str:
    cell, picked, opened = place
    all_doors = (1 << len(maze.doors)) - 1
    if flaw == "random" or (flaw == "wander" and dice.below(3)):
        return dice.choice(ACTIONS)
    if flaw == "wander":
        return maze.plan(place)[0]
    if flaw == "greedy":
        return _greedy(maze, place, dice)
    if flaw == "forget_key":
        action = maze.plan((cell, 0, all_doors))[0]
    else:  # forget_open: as though a door opened by itself for whoever holds its key
        action = maze.plan((cell, picked, opened | picked))[0]
    blocked = action in MOVES and maze.step(place, action) == place
    return dice.choice(MOVES) if blocked and dice.below(2) else action


def _greedy(maze: Maze, place: Place, dice: Dice) -> str:
    cell, picked, _ = place
    for action in ("p", "o"):
        if maze.step(place, action) != place:
            return action
    missing = [key for i, key in enumerate(maze.keys) if not picked >> i & 1]
    (row, column), (to_row, to_column) = (divmod(c, maze.size) for c in (cell, missing[0] if missing else maze.goal))
    towards = ["ns"[to_row > row]] * (to_row != row) + ["we"[to_column > column]] * (to_column != column)
    return dice.choice(towards or MOVES)
