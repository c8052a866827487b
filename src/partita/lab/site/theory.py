"""The figures of a work: lines that were measured, beside those that the theory draws."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.lab.markup import Markup, join, tag
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
    figure,
    line,
    path,
    short,
    text,
    tick_words,
)  # fmt: skip

BASE = HEIGHT - BOTTOM
COLOURS = 5  # lines of a figure after which they repeat


def read(folder: Path, key: str) -> list[dict[str, Any]]:
    """The figures that were measured of a work; none where it has no file."""
    found = folder / "figures" / f"{key}.json"
    if not found.exists():
        return []
    try:
        return list(json.loads(found.read_text())["figures"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found}: no figures ({error}); write it again with partita figure {key}") from error


def drawing(held: dict[str, Any], id: str) -> Markup:
    """A figure and its legend: means over seeds in their bands, theory dashed."""
    scale = _log if held["log"] else float
    lines, theory, places = held["lines"], held["theory"], [scale(v) for v in held["x"]]
    bands = {n: {k: [scale(v) for v in each[k]] for k in ("mean", "low", "high")} for n, each in lines.items()}
    drawn = {n: [scale(v) for v in each] for n, each in theory.items()}
    every = [v for each in bands.values() for k in ("low", "high") for v in each[k]]
    every += [v for values in drawn.values() for v in values]
    x, y = axis(places, LEFT, WIDTH - RIGHT, pad=0.02), axis([v for v in every if math.isfinite(v)], BASE, TOP)
    out: list[Markup] = [*_rows(y, held["log"]), *_columns(x, held["log"])]
    said, marks = [], []
    for i, (name, each) in enumerate(bands.items()):
        colour = f"n{i % COLOURS}"
        out.append(path(_at(x, y, places, each["high"]) + _at(x, y, places, each["low"])[::-1], f"area {colour}", True))
        out.append(path(_at(x, y, places, each["mean"]), f"curve {colour}"))
        means = lines[name]["mean"]
        said.append(f"{name} goes from {short(means[0])} to {short(means[-1])}")
        marks.append(_mark(f"curve {colour}", f"{name}, measured"))
    for i, (name, values) in enumerate(drawn.items()):
        out.append(path(_at(x, y, places, values), f"curve theory t{i % 3}"))
        said.append(f"theory, {name}, from {short(theory[name][0])} to {short(theory[name][-1])}")
        marks.append(_mark(f"curve theory t{i % 3}", f"{name}, theory"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, clipped(held["x_name"], 50), class_="axis"))
    seeds = held["seeds"]
    note = held["y_name"] + (f"; means over {seeds} seeds, bands from the least to the largest" if seeds > 1 else "")
    return join((figure(id, held["title"], "; ".join(said) + ".", out, note), tag("p", *marks, class_="legend plot")))


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def _mark(classes: str, name: str) -> Markup:
    return tag("span", tag("svg", line(1, 7, 25, 7, classes), viewBox="0 0 26 14", aria_hidden="true"), name)


def _at(x: Axis, y: Axis, places: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    return [(x.at(a), y.at(b)) for a, b in zip(places, values, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _ticks(along: Axis, log: bool, count: int) -> list[tuple[float, str]]:
    """Places and words; powers of ten where the axis is logarithmic and has two of them."""
    whole = [float(v) for v in range(math.ceil(along.low), math.floor(along.high) + 1)]
    if log and len(whole) > 1:
        step = math.ceil(len(whole) / count)
        return [(v, short(10**v)) for v in whole[::step]]
    found = along.ticks(count)
    words = [short(10**v, 2) for v in found] if log else tick_words(found)
    return list(zip(found, words, strict=True))


def _rows(y: Axis, log: bool) -> list[Markup]:
    out = []
    for value, word in _ticks(y, log, 5):
        out.append(line(LEFT, y.at(value), WIDTH - RIGHT, y.at(value), "grid"))
        out.append(text(LEFT - 6, y.at(value) + 4, word, anchor="end"))
    return out


def _columns(x: Axis, log: bool) -> list[Markup]:
    return [text(x.at(value), BASE + 16, word) for value, word in _ticks(x, log, 4)]
