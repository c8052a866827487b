"""The ground that plots are drawn on: numbers in words, axes, and SVG elements.

Plots are 360 units wide, shown at about that many pixels on a phone and in columns of it on a desktop, so that
their text is never smaller than 11 pixels. Colours come from the style sheet, which knows dark and light.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from partita.lab.markup import Markup, join, tag

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 14, 38
SCALES = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))  # from which number on, the unit, its letter
DASH = "–"


def aligned(*values: float | None, digits: int = 3) -> list[str]:
    """Numbers with as many decimals as give the largest of them `digits` digits; a dash for None."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    largest = max(known, default=1.0)
    places = max(digits - 1 - math.floor(math.log10(largest)), 0)
    return [_word(v, f".{places}f" if 1e-4 <= largest < 1e7 else f".{digits}g") for v in values]


def _word(value: float | None, form: str) -> str:
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf"
    text = format(value, form)
    return text.removeprefix("-") if float(text) == 0 else text


def short(value: float | None, digits: int = 4) -> str:
    """One number in a few digits, without trailing zeros."""
    return _word(value, f".{digits}g")


def interval(effect: float | None, ci: tuple[float, float] | None) -> str:
    """An effect with its interval: `0.120 [0.050, 0.200]`."""
    return intervals([(effect, ci)])[0]


def intervals(found: Iterable[tuple[float | None, tuple[float, float] | None]]) -> list[str]:
    """Effects with their intervals, all with as many decimals."""
    held = list(found)
    texts = iter(aligned(*(v for effect, ci in held for v in (effect, *(ci or ())))))
    return [next(texts) + (f" [{next(texts)}, {next(texts)}]" if ci is not None else "") for _, ci in held]


def finite(values: Iterable[float | None]) -> list[float]:
    """The numbers among values that can be drawn."""
    return [v for v in values if v is not None and abs(v) < 1e100]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the numbers among values; None where there is none."""
    known = finite(values)
    return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True)
class Axis:
    """A linear map from values to places on the page."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies, to a tenth of a unit; values beyond the axis lie at its ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values, about `count` of them."""
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next((m * unit for m in (1, 2, 5) if m * unit >= rough * 0.999), 10 * unit)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [i * step for i in range(first, last + 1)]


def axis(values: Iterable[float | None], start: float, end: float, pad: float = 0.08) -> Axis:
    """An axis that holds all values with some air at both ends."""
    known = finite(values) or [0.0]
    low, high = min(known), max(known)
    room = (high - low) * pad or max(abs(high) * 0.1, 1e-3)
    return Axis(low - room, high + room, start, end)


def text(x: float, y: float, *words: Any, anchor: str = "middle", class_: str | None = None) -> Markup:
    """Words on a plot."""
    return tag("text", *words, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x0: float, y0: float, x1: float, y1: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x0, y1=y0, x2=x1, y2=y1, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A rectangle; one turned inside out is none."""
    return tag("rect", x=x, y=y, width=max(round(width, 1), 0), height=max(round(height, 1), 0), class_=class_)


def dot(x: float, y: float, class_: str, radius: float = 4) -> Markup:
    """A mark at a point."""
    return tag("circle", cx=x, cy=y, r=radius, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str, closed: bool = False) -> Markup:
    """A line through points, or the area that they enclose."""
    steps = "L".join(f"{x:g} {y:g}" for x, y in points)
    return tag("path", d=f"M{steps}{'Z' if closed else ''}", class_=class_)


def rows(y: Axis, left: float = LEFT) -> Markup:
    """The vertical axis: a faint line and a number for every tick."""
    found = y.ticks()
    words = tick_words(found)
    out = []
    for value, word in zip(found, words, strict=True):
        out.append(line(left, y.at(value), WIDTH - RIGHT, y.at(value), "grid"))
        out.append(text(left - 6, y.at(value) + 4, word, anchor="end"))
    return join(out)


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Numbers of an axis: thousands and millions by letter, as many decimals as their step needs."""
    if not ticks:
        return []
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(ticks[0]) or 1.0
    largest = max(map(abs, ticks))
    if largest >= 1e10 or step < 1e-5:
        return [_word(v, ".3g") for v in ticks]
    unit, letter = next(((unit, letter) for least, unit, letter in SCALES if largest >= least), (1.0, ""))
    places = max(-math.floor(math.log10(step / unit) + 1e-9), 0)
    return [_word(v / unit, f".{places}f") + (letter if v else "") for v in ticks]


def whiskers(x: float, y: Axis, ci: tuple[float, float], class_: str) -> Markup:
    """An interval as a vertical line; an open end has no cap and runs to the edge of the plot."""
    low, high = ci
    out = [line(x, y.at(low), x, y.at(high), class_)]
    out += [line(x - 5, y.at(v), x + 5, y.at(v), class_) for v in (low, high) if math.isfinite(v)]
    return join(out)


def figure(id: str, title: str, description: str, drawing: Iterable[Markup], note: Any, height: int = HEIGHT) -> Markup:
    """A plot with its name and its content in words, for those who do not see it, and a note below its title."""
    svg = tag(
        "svg", tag("title", title, id=f"{id}-title"), tag("desc", description, id=f"{id}-desc"), *drawing,
        viewBox=f"0 0 {WIDTH} {height}", role="img", aria_labelledby=f"{id}-title", aria_describedby=f"{id}-desc",
    )  # fmt: skip
    return tag(
        "figure", tag("figcaption", tag("strong", title), " ", tag("span", note, class_="quiet")), svg, class_="plot"
    )


def clipped(words: str, most: int) -> str:
    """Words that fit; the end of longer ones is left out."""
    return words if len(words) <= most else words[: most - 1] + "…"
