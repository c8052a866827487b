"""The front of a claim: what each arm reached for how far it went from the policy before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from partita.lab.markup import Markup
from partita.lab.site.evidence import Entry, Values
from partita.lab.site.figures import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    axis,
    clipped,
    dot,
    figure,
    mean,
    path,
    rows,
    short,
    text,
    tick_words,
)  # fmt: skip

BASE = HEIGHT - BOTTOM
ACROSS = "square root of KL from the start, in nats"

Point = tuple[float, float]


def fronts(entry: Entry, id: str) -> Markup | None:
    """The value over the root of the divergence: a faint line a seed, their mean strong, the proxy's mean dotted."""
    held = entry.fronts
    if held is None:
        return None
    arms = {arm: [_line(seed, 1) for seed in getattr(held, arm)] for arm in ("control", "treatment")}
    middles = {arm: _middle(getattr(held, arm), 1) for arm in arms}
    fooled = {arm: found for arm in arms if (found := _middle(getattr(held, arm), 2))}
    every = [p for lines in (*arms.values(), middles.values(), fooled.values()) for points in lines for p in points]
    if not all(middles.values()):
        return None
    x = axis([a for a, _ in every], LEFT, WIDTH - RIGHT, pad=0)
    y = axis([b for _, b in every], BASE, TOP)
    ticks = x.ticks(4)
    out: list[Markup] = [rows(y)]
    out += [text(x.at(v), BASE + 16, word) for v, word in zip(ticks, tick_words(ticks), strict=True)]
    out += [path(_at(x, y, line), f"seed {arm}") for arm, lines in arms.items() for line in lines if line]
    out += [path(_at(x, y, line), f"proxy {arm}") for arm, line in fooled.items()]
    said = []
    for arm, line in middles.items():
        out += [path(_at(x, y, line), f"curve {arm}"), dot(*_at(x, y, line[-1:])[0], arm)]
        best, last = max(line, key=lambda p: p[1]), line[-1]
        said.append(
            f"{getattr(entry, arm) or arm} is at best {short(best[1])}, {short(best[0] ** 2)} nats from the start, and "
            f"ends at {short(last[1])}, {short(last[0] ** 2)} nats from it"
        )
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, clipped(ACROSS, 50), class_="axis"))
    note = f"{held.metric or 'value'}, a faint line a seed, their mean strong"
    note += "; dotted: mean of the proxy that was optimised" if fooled else ""
    return figure(id, "Front", "; ".join(said) + ".", out, note)


def _line(seed: Sequence[Values], which: int) -> list[Point]:
    """(root of the divergence, value) of a seed; `which` of the three numbers is the value."""
    found = [(point[0], point[which]) for point in seed]
    return [(math.sqrt(max(a, 0.0)), b) for a, b in found if a is not None and b is not None]


def _middle(seeds: Sequence[Sequence[Values]], which: int) -> list[Point]:
    """The mean over seeds, evaluation by evaluation; empty where one is not known."""
    lines = [_line(seed, which) for seed in seeds]
    if len({len(line) for line in lines}) != 1:
        return []
    return [(mean([a for a, _ in at]) or 0.0, mean([b for _, b in at]) or 0.0) for at in zip(*lines, strict=True)]


def _at(x: Axis, y: Axis, line: Sequence[Point]) -> list[Point]:
    return [(x.at(a), y.at(b)) for a, b in line]
