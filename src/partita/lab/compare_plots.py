"""The plots of a comparison: scores by seed, differences, performance profile, learning curves; an arm, a colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from partita.lab import summaries
from partita.lab.compared import shown
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
    finite,
    line,
    path,
    rect,
    rows,
    short,
    text,
    tick_words,
)  # fmt: skip

BASE = HEIGHT - BOTTOM
LINKED = 3  # arms up to which the dots of a seed are joined
LEVELS = 160  # thresholds of a performance profile
UNITS = {"step": "steps", "samples": "samples", "seconds": "seconds"}

Found = Mapping[str, Any]


def mine(index: int, *drawing: Markup) -> Markup:
    """What belongs to one arm, in its colour."""
    return tag("g", *drawing, class_=f"c{index % 8} d{index % 4}")


def mark(x: float, y: float, class_: str, words: str, radius: float = 4) -> Markup:
    """A dot that says what it is when it is pointed at."""
    return tag("circle", tag("title", words), cx=x, cy=y, r=radius, class_=class_)


def scores(found: Found, id: str) -> Markup:
    """A dot per seed and arm, the mean of the arm with its interval beside them."""
    arms = found["arms"]
    means = [v for about in arms.values() for v in about["mean"]]
    y = axis([*means, *(v for about in arms.values() for v in about["values"])], BASE, TOP)
    width = (WIDTH - LEFT - RIGHT) / len(arms)
    places = [round(LEFT + (i + 0.42) * width, 1) for i in range(len(arms))]
    out = [rows(y)]
    if len(arms) <= LINKED:
        for held in zip(*(about["values"] for about in arms.values()), strict=True):
            for (a, u), (b, v) in pairwise(zip(places, held, strict=True)):
                out.append(line(a, y.at(u), b, y.at(v), "pair"))
    said = []
    for i, (label, about) in enumerate(arms.items()):
        dots = [
            mark(places[i], y.at(v), "mark", f"{label}, seed {seed}: {short(v)}", 3.5)
            for seed, v in zip(found["seeds"], about["values"], strict=True)
        ]
        beside = round(places[i] + min(0.22 * width, 26), 1)
        words = f"{label}: {shown(about['mean'])}"
        drawn = [
            *dots,
            *_interval(beside, y, about["mean"]),
            mark(beside, y.at(about["mean"][0]), "hollow", words, 4.5),
        ]
        name = text(places[i], BASE + 20, clipped(label, max(3, int(width / 7))), class_="arm")
        out.append(mine(i, *drawn, name))
        said.append(f"{label} has mean {shown(about['mean'])}")
    note = f"{found['metric']} of each seed; hollow: mean with 95% interval"
    note += "; a line joins the arms of one seed" if 1 < len(arms) <= LINKED else ""
    return figure(id, "Final scores", "; ".join(said) + ".", out, note)


def _interval(x: float, y: Axis, triple: Sequence[float | None]) -> list[Markup]:
    _, low, high = triple
    if low is None or high is None:
        return []
    return [
        line(x, y.at(low), x, y.at(high), "whisker"),
        *(line(x - 4, y.at(v), x + 4, y.at(v), "whisker") for v in (low, high)),
    ]


def differences(found: Found, id: str) -> Markup | None:
    """The difference of every arm from the first with its interval, and the side on which it is better."""
    against = found["against"]
    if not against:
        return None
    x = axis([0.0, *(v for row in against.values() for v in row["difference"])], 16, WIDTH - 16, pad=0.12)
    step, top = 40, 30
    base = top + step * len(against) + 6
    zero = x.at(0.0)
    start, end = (zero, x.end) if found["better"] == "higher" else (x.start, zero)
    out = [rect(start, 8, end - start, base - 8, "side")]
    ticks = x.ticks()
    for value, word in zip(ticks, tick_words(ticks), strict=True):
        out += [line(x.at(value), base, x.at(value), base + 4, "tick"), text(x.at(value), base + 18, word)]
    out += [line(16, base, WIDTH - 16, base, "tick"), line(zero, 8, zero, base, "threshold")]
    labels, said = list(found["arms"]), []
    for i, (label, row) in enumerate(against.items()):
        middle = top + i * step + 14
        value, low, high = row["difference"]
        words = f"{label}: {shown(row['difference'])}"
        drawn = [text(18, middle - 12, clipped(label, 46), anchor="start", class_="arm")]
        if low is not None and high is not None:
            drawn.append(line(x.at(low), middle, x.at(high), middle, "whisker"))
            drawn += [line(x.at(v), middle - 5, x.at(v), middle + 5, "whisker") for v in (low, high)]
        drawn.append(mark(x.at(value), middle, "mark", words, 5))
        out.append(mine(labels.index(label), *drawn))
        said.append(f"{words}, {row['verdict']}")
    note = f"in {found['metric']}, mean over paired seeds with 95% interval; shaded: better than {found['baseline']}"
    return figure(id, f"Difference from {found['baseline']}", "; ".join(said) + ".", out, note, height=base + 26)


def profile(found: Found, id: str) -> Markup:
    """The share of an arm's seeds that are beyond each score, with its band."""
    lower = found["better"] == "lower"
    sign = -1.0 if lower else 1.0
    every = [v for about in found["arms"].values() for v in about["values"]]
    x = axis(every, LEFT, WIDTH - RIGHT)
    y = Axis(0.0, 1.0, BASE, TOP)
    taus = np.linspace(x.low, x.high, LEVELS)
    out, areas, lines, said = [rows(y), *_under(x)], [], [], []
    for i, (label, about) in enumerate(found["arms"].items()):
        held = [sign * v for v in about["values"]]
        share, low, high = summaries.performance_profile(held, np.sort(sign * taus))
        if lower:
            share, low, high = share[::-1], low[::-1], high[::-1]
        places = [x.at(float(t)) for t in taus]
        there = [(a, y.at(float(v))) for a, v in zip(places, high, strict=True)]
        back = [(a, y.at(float(v))) for a, v in zip(places[::-1], low[::-1], strict=True)]
        areas.append(mine(i, path([*there, *back], "band", closed=True)))
        lines.append(mine(i, path([(a, y.at(float(v))) for a, v in zip(places, share, strict=True)], "curve")))
        said.append(f"half of the seeds of {label} are beyond {short(float(np.median(about['values'])), 3)}")
    out += [*areas, *lines, _name(found["metric"])]
    side, end = ("below", "left") if lower else ("above", "right")
    note = f"share of seeds {side} each score, with pointwise 95% band; further to the {end} is better"
    return figure(id, "Performance profile", "; ".join(said) + ".", out, note)


def _under(x: Axis) -> list[Markup]:
    """The numbers of a horizontal axis."""
    ticks = x.ticks(4)
    out = []
    for value, word in zip(ticks, tick_words(ticks), strict=True):
        at = x.at(value)
        out.append(text(at, BASE + 16, word, anchor="end" if at > WIDTH - 24 else "middle"))
    return out


def _name(words: str) -> Markup:
    return text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, clipped(words, 44), class_="axis")


def curves(bands: Mapping[str, Found], labels: Sequence[str], metric: str, axis_name: str, id: str) -> Markup | None:
    """The mean learning curve of every arm in its band, over steps, samples or seconds."""
    every = [v for band in bands.values() for name in ("mean", "low", "high") for v in band[name]]
    if not finite(every):
        return None
    x = axis([v for band in bands.values() for v in band["x"]], LEFT, WIDTH - RIGHT, pad=0)
    middle = [v for band in bands.values() for v in band["mean"]]
    y = _bounded(axis(every, BASE, TOP, pad=0.02), finite(middle))
    out, areas, lines, said = [rows(y), *_under(x)], [], [], []
    for label, band in bands.items():
        i = labels.index(label)
        edge = [(x.at(a), y.at(lo), y.at(hi)) for a, lo, hi in zip(band["x"], band["low"], band["high"], strict=True)
                if lo is not None and hi is not None]  # fmt: skip
        if edge:
            outline = [*((a, hi) for a, _, hi in edge), *((a, lo) for a, lo, _ in reversed(edge))]
            areas.append(mine(i, path(outline, "band", closed=True)))
        lines.append(mine(i, path([(x.at(a), y.at(m)) for a, m in zip(band["x"], band["mean"], strict=True)], "curve")))
        first, last = short(band["mean"][0], 3), short(band["mean"][-1], 3)
        said.append(f"{label} goes from {first} to {last} at {short(band['x'][-1])} {UNITS[axis_name]}")
    out += [*areas, *lines, _name(UNITS[axis_name])]
    title = {"step": "By steps", "samples": "By samples", "seconds": "By wall-clock"}[axis_name]
    return figure(id, title, "; ".join(said) + ".", out, f"{metric} while training, mean over seeds with 95% band")


def _bounded(y: Axis, means: Sequence[float]) -> Axis:
    """The axis cut to three times the range of the means, so that the band of a few seeds does not flatten them."""
    low, high = min(means), max(means)
    room = (high - low) or max(abs(high), 1e-3)
    return Axis(max(y.low, low - room), min(y.high, high + room), y.start, y.end)


def legend(labels: Sequence[str]) -> Markup:
    """Which colour and dash is which arm."""
    items = []
    for i, label in enumerate(labels):
        drawn = tag("svg", mine(i, line(1, 7, 25, 7, "curve"), tag("circle", cx=13, cy=7, r=4, class_="mark")),
                    viewBox="0 0 26 14", aria_hidden="true")  # fmt: skip
        items.append(tag("span", drawn, label))
    return tag("p", join(items), class_="legend plot arms")
