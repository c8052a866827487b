"""The windy walk: short ways are windy, and how strong the wind is, nobody knows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from partita.tasks.control._checks import check_between, check_positive, refuse
from partita.tasks.finite.families import FiniteFamily, sampled
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular

CORRIDORS = "S.111G/..###./..333./..###./..666./..666."
MOVES = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}


@dataclass(frozen=True)
class WindyWalk(Tabular):
    """Walk to the goal through one of three corridors against a wind from the east, -1 a step (arXiv:2410.06212).

    layout: rows separated by "/", of "#" wall, "." floor, "S" start, "G" goal (which ends the walk), and digits: floor
    where in a corridor of digit e the wind blows one west with probability alpha^e, whatever is tried but going west,
    which never fails. A move into a wall stays. The paper has 6 walls among 36 cells, and e = 1, 3, 6 for the northern,
    middle and southern corridor; its map was not to be seen, and this one is inferred from its text: on it the southern
    corridor is never the best for alpha up to 0.5.

    alpha: the wind at which it is played. high, points: the `family` has so many alphas, evenly from 0 to high.
    """

    layout: str = CORRIDORS
    alpha: float = 0.0
    high: float = 0.5
    points: int = 25
    discount: float = 0.95
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "max_steps", "high")
        for name in ("alpha", "high", "discount"):
            check_between(self, name, 0.0, 1.0)
        rows, text = self.layout.split("/"), self.layout.replace("/", "")
        if len({len(row) for row in rows}) > 1:
            raise refuse(self, "layout", self.layout, "give rows of equal length")
        if odd := sorted(set(text) - set("#.SG123456789")):
            raise refuse(self, "layout", self.layout, f"`{odd[0]}` is not a map symbol; use # . S G 1-9")
        if text.count("S") != 1 or "G" not in text:
            raise refuse(self, "layout", self.layout, "mark one start with S, and a goal with G")

    @property
    def horizon(self) -> int:
        return self.max_steps

    @functools.cached_property
    def family(self) -> FiniteFamily:
        """The walk at every alpha of the grid."""
        return sampled(self, {"alpha": (0.0, self.high)}, self.points)

    def finite(self) -> FiniteMDP:
        rows = self.layout.split("/")
        cells = {(i, j): s for i, row in enumerate(rows) for j, s in enumerate(row) if s != "#"}
        number = {cell: k for k, cell in enumerate(cells)}
        outcomes = []
        for cell, symbol in cells.items():
            here, wind = number[cell], self.alpha ** int(symbol) if symbol.isdigit() else 0.0
            west = number.get((cell[0], cell[1] - 1), here)
            for action, (di, dj) in enumerate(MOVES.values()):
                there, paid = number.get((cell[0] + di, cell[1] + dj), here), -1.0
                if symbol == "G":
                    there, paid = here, 0.0
                outcomes += [(here, action, there, 1 - wind, paid), (here, action, west, wind, paid)]
        return assembled(
            outcomes, len(cells), len(MOVES), next(number[c] for c, s in cells.items() if s == "S"),
            discount=self.discount, states=tuple(f"{i},{j}" for i, j in cells), actions=tuple(MOVES),
        )  # fmt: skip
