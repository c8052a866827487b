"""Measure what scripted agents score in every built-in world; write the table of `docs/worlds.md`.

Measured alone (`--worlds`), a world replaces its own rows. BabyAI and TextWorld need `pip install 'partita[worlds]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from partita.core.registry import part_class
from partita.tasks.worlds.base import World
from partita.tasks.worlds.reference import reference_scores

PAGE = Path(__file__).resolve().parents[1] / "docs" / "worlds.md"
BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
HEAD = ("world", "level", "problems", "expert", "its turns", "random", "other procedures")
LEVELS = (  # of worlds without numbered levels: settings, and what they are called
    ("babyai", "BabyAI-GoToLocalS5N2-v0", {"id": "BabyAI-GoToLocalS5N2-v0", "max_turns": 10}),
    ("babyai", "BabyAI-GoToRedBallGrey-v0", {"id": "BabyAI-GoToRedBallGrey-v0", "max_turns": 20}),
    ("babyai", "BabyAI-PickupLoc-v0", {"id": "BabyAI-PickupLoc-v0", "max_turns": 20}),
    ("babyai", "BabyAI-PutNextLocalS5N3-v0", {"id": "BabyAI-PutNextLocalS5N3-v0", "max_turns": 20}),
    ("babyai", "BabyAI-UnlockLocal-v0", {"id": "BabyAI-UnlockLocal-v0", "max_turns": 32}),
    ("babyai", "MiniGrid-Empty-5x5-v0", {"id": "MiniGrid-Empty-5x5-v0", "max_turns": 20}),
    ("babyai", "MiniGrid-DoorKey-5x5-v0", {"id": "MiniGrid-DoorKey-5x5-v0", "max_turns": 20}),
    ("textworld", "2 rooms, quest of 3", {"games": 20}),
    (
        "textworld",
        "4 rooms, quest of 5",
        {"nb_rooms": 4, "nb_objects": 8, "quest_length": 5, "max_turns": 12, "games": 20},
    ),
)
NUMBERED = ("keydoor", "lookup", "calculator", "twenty", "sokoban")


def worlds(names: list[str]) -> Iterator[tuple[str, World]]:
    """The worlds asked for: what the level is called ("" where levels have numbers), and the world."""
    for name in names:
        if name in NUMBERED:
            yield "", part_class("task", name)()
        for each, level, settings in LEVELS:
            if each == name:
                yield level, part_class("task", name)(**settings)


def rows(names: list[str], problems: int, seed: int) -> Iterator[tuple[str, ...]]:
    """The rows of the table, as text."""
    for called, world in worlds(names):
        n = min(problems, 2 * getattr(world, "games", problems))  # no use in playing a game many times
        print(world.part_name(), called, flush=True)
        for level, scores in reference_scores(world, n, seed).items():
            label = called or (f"{level} (hard)" if level == world.hard else str(level))
            expert, turns = (f"{scores[k]:.2f}" if k in scores else "-" for k in ("expert", "turns"))
            others = ", ".join(f"{k} {v:.2f}" for k, v in scores.items() if k not in ("expert", "turns", "random"))
            yield world.part_name(), label, str(n), expert, turns, f"{scores['random']:.2f}", others or "-"


def table(fresh: list[tuple[str, ...]], page: str) -> str:
    """The page with fresh rows in the places of those of the same worlds, in the order of worlds."""
    before, rest = page.split(BEGIN)
    held, after = rest.split(END)
    lines = [line.strip("|").split(" | ") for line in held.splitlines() if line.startswith("| ")]
    known = [tuple(cell.strip() for cell in line) for line in lines[1:]]  # the first is the head
    measured = {row[0] for row in fresh}
    order = (*NUMBERED, *dict.fromkeys(name for name, _, _ in LEVELS))
    every = sorted([*fresh, *(row for row in known if row[0] not in measured)], key=lambda row: order.index(row[0]))
    text = [f"| {' | '.join(row)} |" for row in (HEAD, *every)]
    text.insert(1, "|" + "---|" * len(HEAD))
    return f"{before}{BEGIN}\n\n" + "\n".join(text) + f"\n\n{END}{after}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="*", default=[*NUMBERED, "babyai", "textworld"])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    fresh = list(rows(options.worlds, options.problems, options.seed))
    if not options.dry:
        PAGE.write_text(table(fresh, PAGE.read_text()))
        print("wrote", PAGE)


if __name__ == "__main__":
    main()
