"""Sokoban rooms: how they are drawn, how they change, and how they are solved.

Cells are numbered row by row from the top left of the room with a wall all round it; sets of cells are bits of an
integer. A place is where the agent and the boxes are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from partita.tasks.worlds.generated import Dice

MOVES = ("n", "e", "s", "w")
WALL, FLOOR, GOAL, BOX, PLACED, AGENT, ARRIVED = "#-.$*@+"  # PLACED: a box, ARRIVED: the agent, on a goal

Place = tuple[int, int]  # cell of the agent; bits of the boxes


@dataclass(frozen=True)
class Room:
    """A room of `height` rows and `width` columns without the wall around it; `walls` and `goals` are bits of cells."""

    height: int
    width: int
    walls: int
    goals: int

    @functools.cached_property
    def deltas(self) -> tuple[int, int, int, int]:
        """What a move adds to the number of a cell: n, e, s, w."""
        return (-self.width - 2, 1, self.width + 2, -1)

    @functools.cached_property
    def alive(self) -> int:
        """Cells from which a box, alone in the room, can be pushed to a goal: goals, and what leads to them."""
        alive, queue = self.goals, list(_cells(self.goals))
        for cell in queue:
            for delta in self.deltas:
                before, agent = cell - delta, cell - 2 * delta
                if not (self.walls >> before & 1 or alive >> before & 1) and not self.walls >> agent & 1:
                    alive |= 1 << before
                    queue.append(before)
        return alive

    def inside(self, row: int, column: int) -> int:
        """The cell at a row and column of the room, counted from 0."""
        return (row + 1) * (self.width + 2) + column + 1

    def outside(self, cell: int) -> bool:
        """Whether the cell belongs to the wall around the room."""
        row, column = divmod(cell, self.width + 2)
        return not (0 < row <= self.height and 0 < column <= self.width)

    def text(self, place: Place) -> str:
        """Room and place on one line, row after row; `parse` reads it back."""
        rows = ("".join(self.symbol(place, self.inside(r, c)) for c in range(self.width)) for r in range(self.height))
        return "/".join(rows)

    def symbol(self, place: Place, cell: int) -> str:
        """What is at a cell."""
        goal = self.goals >> cell & 1
        if cell == place[0]:
            return ARRIVED if goal else AGENT
        if place[1] >> cell & 1:
            return PLACED if goal else BOX
        return WALL if self.walls >> cell & 1 else GOAL if goal else FLOOR

    def step(self, place: Place, move: str) -> Place:
        """Where one of `MOVES` leads; walking into a box pushes it; a move without effect leads to the same place."""
        agent, boxes = place
        delta = self.deltas[MOVES.index(move)]
        there = agent + delta
        if self.walls >> there & 1:
            return place
        if boxes >> there & 1:
            beyond = there + delta
            if (self.walls | boxes) >> beyond & 1:
                return place
            boxes ^= 1 << there | 1 << beyond
        return there, boxes

    def placed(self, place: Place) -> int:
        """How many boxes are on goals."""
        return (place[1] & self.goals).bit_count()

    def solved(self, place: Place) -> bool:
        """Whether every box is on a goal."""
        return place[1] & ~self.goals == 0

    def solve(self, place: Place, longest: int | None = None) -> str | None:
        """A shortest sequence of moves that puts every box on a goal, by breadth-first search.

        None where there is none (of at most `longest` moves). Places with a box on a cell that is not `alive` are
        left out, for no solution passes through them.
        """
        walls, goals, dead = self.walls, self.goals, ~self.alive
        if place[1] & dead:
            return None
        if not place[1] & ~goals:
            return ""
        moves = tuple(zip(self.deltas, MOVES, strict=True))
        came: dict[Place, tuple[Place, str]] = {place: (place, "")}
        frontier, depth = [place], 0
        while frontier and depth != longest:
            following, depth = [], depth + 1
            for here in frontier:
                agent, boxes = here
                for delta, move in moves:
                    to, moved = agent + delta, boxes
                    if walls >> to & 1:
                        continue
                    if pushed := boxes >> to & 1:
                        beyond = to + delta
                        if (walls | boxes | dead) >> beyond & 1:
                            continue
                        moved = boxes ^ (1 << to | 1 << beyond)
                    there = (to, moved)
                    if there in came:
                        continue
                    came[there] = (here, move)
                    if pushed and not moved & ~goals:
                        return _way(came, there)
                    following.append(there)
            frontier = following
        return None

    def distance(self, cell: int, boxes: int) -> int:
        """Rows plus columns from a box at `cell` to the nearest goal without a box; 0 on a goal, large without any."""
        if self.goals >> cell & 1:
            return 0
        across = self.width + 2
        free = [divmod(goal, across) for goal in _cells(self.goals & ~boxes)]
        row, column = divmod(cell, across)
        return min((abs(row - r) + abs(column - c) for r, c in free), default=across**2)

    def reach(self, place: Place) -> dict[int, str]:
        """Per cell that the agent can walk to without a push: a shortest way there."""
        agent, boxes = place
        ways = {agent: ""}
        queue = [agent]
        for cell in queue:
            for delta, move in zip(self.deltas, MOVES, strict=True):
                if cell + delta not in ways and not (self.walls | boxes) >> (cell + delta) & 1:
                    ways[cell + delta] = ways[cell] + move
                    queue.append(cell + delta)
        return ways

    def pushes(self, place: Place) -> list[tuple[int, int, str]]:
        """Every push that can be made: the cell of the box, the cell it goes to, and a shortest way to do it."""
        ways, out = self.reach(place), []
        for box in _cells(place[1]):
            for delta, move in zip(self.deltas, MOVES, strict=True):
                if box - delta in ways and not (self.walls | place[1]) >> (box + delta) & 1:
                    out.append((box, box + delta, ways[box - delta] + move))
        return out

    def solvable(self, place: Place) -> bool:
        """Whether any sequence of moves puts every box on a goal: a search over pushes, nearest to the goals first."""
        start = (min(self.reach(place)), place[1])
        seen, stack = {start}, [start]
        while stack:
            here = stack.pop()
            if self.solved(here):
                return True
            following = []
            for box, to, _ in self.pushes(here):
                boxes = here[1] ^ (1 << box | 1 << to)
                if not boxes & ~self.alive:
                    there = (min(self.reach((box, boxes))), boxes)
                    if there not in seen:
                        seen.add(there)
                        following.append(there)
            stack += sorted(following, key=self.placed)
        return False


def _way(came: dict[Place, tuple[Place, str]], place: Place) -> str:
    moves = ""
    while came[place][1]:
        place, move = came[place]
        moves += move
    return moves[::-1]


def _cells(bits: int) -> Iterator[int]:
    """The cells of a set, the smallest first."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Room, Place]:
    """The room and the place that `Room.text` wrote."""
    return _parse(text)


def _parse(text: str) -> tuple[Room, Place]:
    rows = text.split("/")
    height, width = len(rows), len(rows[0])
    inner = Room(height, width, 0, 0)
    bits = dict.fromkeys("#-.$*@+", 0)
    for r, row in enumerate(rows):
        for c, symbol in enumerate(row):
            bits[symbol] |= 1 << inner.inside(r, c)
    within = functools.reduce(int.__or__, bits.values())
    walls = ((1 << (height + 2) * (width + 2)) - 1) & ~within | bits[WALL]
    goals = bits[GOAL] | bits[PLACED] | bits[ARRIVED]
    agent = (bits[AGENT] | bits[ARRIVED]).bit_length() - 1
    return Room(height, width, walls, goals), (agent, bits[BOX] | bits[PLACED])


@functools.lru_cache(maxsize=65536)
def deadlocked(room: Room, region: int, boxes: int) -> bool:
    """Whether a room can no longer be solved, with the agent in the region whose first cell is `region`."""
    return not room.solvable((region, boxes))


def draw(dice: Dice, size: int, boxes: int, walls: int, shortest: int, longest: int) -> tuple[Room, Place, str]:
    """A random room, its first place, and a shortest solution of `shortest` to `longest` moves.

    Walls, goals, boxes and agent on random cells, drawn again until the floor is in one piece, no box starts on a
    goal, and the solution is as long as asked for.
    """
    while True:
        cells = dice.shuffled(range(size**2))
        kinds = [FLOOR] * size**2
        for kind, count in ((WALL, walls), (GOAL, boxes), (BOX, boxes), (AGENT, 1)):
            for _ in range(count):
                kinds[cells.pop()] = kind
        text = "/".join("".join(kinds[i : i + size]) for i in range(0, size**2, size))
        room, place = _parse(text)
        if place[1] & ~room.alive or len(room.reach((place[0], 0))) < size**2 - walls:
            continue
        solution = room.solve(place, longest)
        if solution is not None and len(solution) >= shortest:
            return room, place, solution
