"""Mazes with keys and doors: how they are drawn, how they change, and how they are solved.

Cells are numbered row by row from the top left; walls and doors stand between cells. Door i stops whoever has
not picked key i up and opened it.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass

from partita.tasks.worlds.generated import Dice

MOVES = ("n", "e", "s", "w")
ACTIONS = (*MOVES, "p", "o")  # p: pick up the key underfoot; o: open the doors beside whose keys are held

Place = tuple[int, int, int]  # cell; bits of the keys picked up; bits of the doors opened
Edge = tuple[int, int]  # two neighbouring cells, the smaller first


@dataclass(frozen=True)
class Maze:
    """A maze: a square of `size` x `size` cells, and `passages` (open pairs of cells).

    `doors[i]` is the pair of cells between which door i stands, `keys[i]` the cell where its key lies.
    """

    size: int
    start: int
    goal: int
    keys: tuple[int, ...]
    doors: tuple[Edge, ...]
    passages: tuple[Edge, ...]

    @property
    def text(self) -> str:
        """The maze on one line; `parse` reads it back."""
        cells = ",".join(map(str, self.keys))
        pairs = [",".join(f"{a}-{b}" for a, b in edges) for edges in (self.doors, self.passages)]
        return f"{self.size}/{self.start}/{self.goal}/{cells}/{pairs[0]}/{pairs[1]}"

    @functools.cached_property
    def exits(self) -> list[list[tuple[int, int]]]:
        """Per cell and direction n, e, s, w: (the cell beyond, the door between), -1 for none."""
        passages, doors = set(self.passages), {edge: i for i, edge in enumerate(self.doors)}
        out = []
        for cell in range(self.size**2):
            row = []
            for beyond in _beside(cell, self.size):
                edge = (min(cell, beyond), max(cell, beyond))
                door = doors.get(edge, -1)
                row.append((beyond if edge in passages or door >= 0 else -1, door))
            out.append(row)
        return out

    @property
    def first(self) -> Place:
        """Where an episode begins."""
        return (self.start, 0, 0)

    def step(self, place: Place, action: str) -> Place:
        """Where one of `ACTIONS` leads; an action without effect leads to the same place."""
        cell, picked, opened = place
        if action == "p":
            return cell, picked | sum(1 << i for i, key in enumerate(self.keys) if key == cell), opened
        if action == "o":
            beside = sum(1 << door for beyond, door in self.exits[cell] if beyond >= 0 and door >= 0)
            return cell, picked, opened | (beside & picked)
        beyond, door = self.exits[cell][MOVES.index(action)]
        if beyond < 0 or (door >= 0 and not opened >> door & 1):
            return place
        return beyond, picked, opened

    def plan(self, place: Place) -> list[str]:
        """A shortest list of actions to the goal, by breadth-first search; the first in the order of `ACTIONS`."""
        came: dict[Place, tuple[Place, str]] = {}
        queue = deque([place])
        while queue:
            here = queue.popleft()
            if here[0] == self.goal:
                actions = []
                while here != place:
                    here, action = came[here]
                    actions.append(action)
                return actions[::-1]
            for action in ACTIONS:
                there = self.step(here, action)
                if there != place and there not in came:
                    came[there] = (here, action)
                    queue.append(there)
        raise ValueError(f"the maze {self.text} has no way to its goal")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Maze:
    """The maze that `Maze.text` wrote."""
    size, start, goal, keys, doors, passages = text.split("/")

    def edges(part: str) -> tuple[Edge, ...]:
        pairs = [pair.split("-") for pair in part.split(",") if pair]
        return tuple((int(a), int(b)) for a, b in pairs)

    cells = tuple(int(cell) for cell in keys.split(",") if cell)
    return Maze(int(size), int(start), int(goal), cells, edges(doors), edges(passages))


def draw(dice: Dice, size: int, keys: int, loops: int, longest: int) -> Maze:
    """A random maze whose doors must all be opened and whose shortest solution has at most `longest` actions.

    A random spanning tree of the cells; `keys` doors on the way from start to goal, which cut the tree into
    regions one behind the other; key i somewhere before door i; then up to `loops` more passages, each within
    one region. So every maze can be solved, and none without every key.
    """
    while True:
        maze = _draw(dice, size, keys, loops)
        if len(maze.plan(maze.first)) <= longest:
            return maze


def _draw(dice: Dice, size: int, keys: int, loops: int) -> Maze:
    edges = dice.shuffled([(c, d) for c in range(size**2) for d in _beside(c, size) if d > c])
    tree = _spanning_tree(edges, size**2)
    start = dice.below(size**2)
    back = _rooted(tree, start)

    def way(cell: int) -> list[int]:
        out = [cell]
        while out[-1] != start:
            out.append(back[out[-1]])
        return out[::-1]

    ways = [way(cell) for cell in range(size**2)]
    goal = dice.choice([cell for cell, path in enumerate(ways) if len(path) > keys + 1])
    steps = list(zip(ways[goal], ways[goal][1:], strict=False))
    chosen = sorted(dice.shuffled(range(len(steps)))[:keys])
    doors = [(min(steps[i]), max(steps[i])) for i in chosen]
    beyond = [steps[i][1] for i in chosen]  # first cell behind each door
    region = [sum(cell in path for cell in beyond) for path in ways]

    places: list[int] = []
    for i in range(keys):
        free = [c for c in range(size**2) if region[c] <= i and c not in places]
        places.append(dice.choice([c for c in free if c != start] or free))
    spare = [e for e in edges if e not in tree and region[e[0]] == region[e[1]]]
    passages = sorted([e for e in tree if e not in doors] + spare[:loops])
    return Maze(size, start, goal, tuple(places), tuple(doors), tuple(passages))


def _beside(cell: int, size: int) -> list[int]:
    """The cells north, east, south and west; -1 outside the square."""
    row, column = divmod(cell, size)
    return [
        cell - size if row > 0 else -1,
        cell + 1 if column < size - 1 else -1,
        cell + size if row < size - 1 else -1,
        cell - 1 if column > 0 else -1,
    ]


def _spanning_tree(edges: list[Edge], cells: int) -> set[Edge]:
    """The edges, taken in order, that join what was not joined before (Kruskal, 1956)."""
    group = list(range(cells))
    tree = set()
    for a, b in edges:
        if group[a] != group[b]:
            tree.add((a, b))
            old, new = group[a], group[b]
            group = [new if g == old else g for g in group]
    return tree


def _rooted(tree: set[Edge], root: int) -> dict[int, int]:
    """Per cell, the next cell on its way to the root."""
    beside: dict[int, list[int]] = {}
    for a, b in tree:
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    back, queue = {root: root}, [root]
    for cell in queue:
        for other in beside.get(cell, []):
            if other not in back:
                back[other] = cell
                queue.append(other)
    return back
