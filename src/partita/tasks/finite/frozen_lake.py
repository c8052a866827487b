"""Frozen lakes: over slippery ice to the goal, past the holes."""

from __future__ import annotations

from dataclasses import dataclass

from partita.core.errors import nearest
from partita.tasks.control._checks import check_between, check_positive, refuse
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular

LAKES = {
    "4x4": "SFFF/FHFH/FFFH/HFFG",
    "8x8": "SFFFFFFF/FFFFFFFF/FFFHFFFF/FFFFFHFF/FFFHFFFF/FHHFFFHF/FHFFHFHF/FFFHFFFG",
}
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # left, down, right, up


@dataclass(frozen=True)
class FrozenLake(Tabular):
    """Gymnasium's FrozenLake: actions left, down, right, up; a step off the map stays.

    layout: "4x4", "8x8", or rows of text separated by "/" of "S" start (one of several by chance), "F" ice, "H" hole,
    "G" goal. success: probability that a step goes where it should; the rest is shared by the two directions at right
    angles to it. Coming to the goal pays 1; goals and holes end an episode. Gymnasium cuts one after 100 steps on the
    smaller map, after 200 on the larger.
    """

    layout: str = "4x4"
    success: float = 1 / 3
    discount: float = 0.99
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        for name in ("success", "discount"):
            check_between(self, name, 0.0, 1.0)
        rows = self.rows
        if len({len(row) for row in rows}) > 1:
            raise refuse(self, "layout", self.layout, "give rows of equal length")
        odd = sorted(set("".join(rows)) - set("SFHG"))
        if odd:
            fix = f"`{odd[0]}` is not a map symbol; use S F H G, or name a map: {nearest('', LAKES)}"
            raise refuse(self, "layout", self.layout, fix)
        for symbol, meaning in (("S", "a start"), ("G", "a goal")):
            if symbol not in "".join(rows):
                raise refuse(self, "layout", self.layout, f"mark {meaning} with {symbol}")

    @property
    def rows(self) -> list[str]:
        """The map, a string a row."""
        return LAKES.get(self.layout, self.layout).split("/")

    @property
    def horizon(self) -> int:
        return self.max_steps

    def finite(self) -> FiniteMDP:
        rows, cells = self.rows, "".join(self.rows)
        high, wide, aside = len(rows), len(rows[0]), (1 - self.success) / 2
        outcomes = []
        for s, symbol in enumerate(cells):
            for action in range(4):
                if symbol in "HG":
                    outcomes.append((s, action, s, 1.0, 0.0))
                    continue
                for turn, chance in ((0, self.success), (1, aside), (3, aside)):
                    down, right = MOVES[(action + turn) % 4]
                    i = min(max(s // wide + down, 0), high - 1)
                    j = min(max(s % wide + right, 0), wide - 1)
                    outcomes.append((s, action, i * wide + j, chance, float(rows[i][j] == "G")))
        start = [(symbol == "S") / cells.count("S") for symbol in cells]
        names = ("left", "down", "right", "up")
        return assembled(outcomes, len(cells), 4, start, discount=self.discount, actions=names)
