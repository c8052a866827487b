"""The plots of a claim: values per seed, the effect, the effect along the dial, learning curves, identities.

The treatment is a filled mark and a solid line, the control a hollow mark and a dashed line, so that no plot
needs its colours to be read.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from partita.lab.markup import Markup, join, tag
from partita.lab.site.evidence import Curve, Dial, Entry
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
    finite,
    interval,
    line,
    mean,
    path,
    rect,
    rows,
    short,
    text,
    tick_words,
    whiskers,
)  # fmt: skip

POINTS = 200  # a longer curve is drawn through this many of its points
BASE = HEIGHT - BOTTOM  # where horizontal axes lie


def effect_name(entry: Entry) -> str:
    """What the effect is, in words."""
    sign = "/" if entry.kind == "ratio" else "-"
    return f"{entry.treatment or 'treatment'} {sign} {entry.control or 'control'}"


def values(entry: Entry, id: str) -> Markup | None:
    """A dot per seed and arm, the two of a seed joined by a line: solid where the treatment is better."""
    arms = entry.values
    if not finite((*arms.treatment, *arms.control)):
        return None
    y = axis((*arms.treatment, *arms.control), BASE, TOP)
    left, right = LEFT + 0.3 * (WIDTH - LEFT - RIGHT), LEFT + 0.7 * (WIDTH - LEFT - RIGHT)
    out: list[Markup] = [rows(y)]
    better = worse = 0
    for of_control, of_treatment in zip(arms.control, arms.treatment, strict=False):
        if of_control is None or of_treatment is None:
            continue
        gain = of_treatment - of_control if entry.better != "lower" else of_control - of_treatment
        better, worse = better + (gain > 0), worse + (gain < 0)
        out.append(line(left, y.at(of_control), right, y.at(of_treatment), "pair" if gain >= 0 else "pair dashed"))
    said = []
    for arm, x, side in (("control", left, -1), ("treatment", right, 1)):
        held = getattr(arms, arm)
        out += [dot(x, y.at(v), arm) for v in finite(held)]
        name = getattr(entry, arm) or arm
        out.append(text(x, BASE + 20, clipped(name, 18)))
        middle = mean(held)
        if middle is not None:
            out.append(line(x + side * 12, y.at(middle), x + side * 30, y.at(middle), f"mean {arm}"))
            out.append(text(x + side * 34, y.at(middle) + 4, short(middle, 3), anchor="end" if side < 0 else "start"))
            said.append(f"{name} has mean {short(middle)} over {len(finite(held))} seeds")
    count = len(list(zip(arms.control, arms.treatment, strict=False)))
    words = {"lower": ("lower", "higher")}.get(entry.better, ("higher", "lower"))
    if count:
        said.append(f"the treatment is {words[0]} on {better} of {count} seeds and {words[1]} on {worse}")
    note = f"{entry.metric or 'metric'} of each seed; bars are means"
    if worse:
        note += f"; a dashed line is a seed on which the treatment is {words[1]}"
    return figure(id, "Values per seed", "; ".join(said) + ".", out, note)


def effect(entry: Entry, id: str) -> Markup | None:
    """The effect with its 95% interval, and the side on which the statement holds."""
    if entry.effect is None or entry.kind == "identity":
        return None
    ci = entry.ci or (entry.effect, entry.effect)
    edges = [-entry.threshold, entry.threshold] if entry.better == "equal" else [entry.threshold]
    x = axis((entry.effect, *(v for v in ci if math.isfinite(v)), *edges), 16, WIDTH - 16, pad=0.15)
    middle, base = 36, 66
    out = [_side(entry, x, 14, base)]
    ticks = x.ticks()
    for value, word in zip(ticks, tick_words(ticks), strict=True):
        out += [line(x.at(value), base, x.at(value), base + 4, "tick"), text(x.at(value), base + 18, word)]
    out.append(line(16, base, WIDTH - 16, base, "tick"))
    out += [line(x.at(v), 14, x.at(v), base, "threshold") for v in edges]
    if entry.ci is not None:
        out.append(line(x.at(ci[0]), middle, x.at(ci[1]), middle, "whisker"))
        out += [line(x.at(v), middle - 6, x.at(v), middle + 6, "whisker") for v in ci if math.isfinite(v)]
    out.append(dot(x.at(entry.effect), middle, "treatment", 5))
    out.append(text(WIDTH / 2, base + 36, clipped(effect_name(entry), 52), class_="axis"))
    said = f"{effect_name(entry)}: {interval(entry.effect, entry.ci)}; it must lie {needed(entry)}."
    return figure(id, "Effect", said, out, f"with 95% interval; shaded: {needed(entry)}", height=110)


def needed(entry: Entry) -> str:
    """Where the effect must lie for the statement to hold."""
    edge = short(entry.threshold)
    if entry.better == "equal":
        return f"between -{edge} and {edge}"
    return f"{'below' if entry.better == 'lower' else 'above'} {edge}"


def _side(entry: Entry, x: Axis, top: float, base: float) -> Markup:
    edge = x.at(entry.threshold)
    start, end = {"lower": (x.start, edge), "equal": (x.at(-entry.threshold), edge)}.get(entry.better, (edge, x.end))
    return rect(start, top, end - start, base - top, "side")


def dial(entry: Entry, id: str) -> Markup | None:
    """The effect at each position of the dial, weakest first, with intervals and the threshold."""
    held = entry.dial
    if held is None or not finite(s.effect for s in held.settings):
        return None
    edges = [-entry.threshold, entry.threshold] if entry.better == "equal" else [entry.threshold]
    ends = [v for s in held.settings if s.ci for v in s.ci if math.isfinite(v)]
    y = axis((*(s.effect for s in held.settings), *ends, *edges), BASE, TOP)
    out: list[Markup] = [rows(y)]
    out += [line(LEFT, y.at(v), WIDTH - RIGHT, y.at(v), "threshold") for v in edges]
    count = len(held.settings)
    places = [LEFT + (i + 0.5) * (WIDTH - LEFT - RIGHT) / count for i in range(count)]
    room = int((WIDTH - LEFT - RIGHT) / count / 6.4)  # characters of 11 pixels between two positions
    points, said = [], []
    for x, setting in zip((round(p, 1) for p in places), held.settings, strict=True):
        lines = textwrap.wrap(setting.label, max(room, 2), break_on_hyphens=False) or [""]
        lines = lines if len(lines) <= 2 else [lines[0], clipped(" ".join(lines[1:]), max(room, 2))]
        out += [text(x, BASE + 18 + 13 * i, word) for i, word in enumerate(lines)]
        if setting.effect is None:
            said.append(f"{setting.label}: not measured")
            continue
        points.append((x, y.at(setting.effect)))
        if setting.ci is not None:
            out.append(whiskers(x, y, setting.ci, "whisker"))
        said.append(f"{setting.label}: {interval(setting.effect, setting.ci)}")
    out += [path(points, "curve treatment"), *(dot(x, at, "treatment") for x, at in points)]
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT + 12, clipped(held.name, 44), class_="axis"))
    note = f"{effect_name(entry)} with 95% interval, from the weakest setting to the strongest; dashed: {_edge(entry)}"
    return figure(id, "Effect along the dial", "; ".join(said) + ".", out, note, height=HEIGHT + 16)


def _edge(entry: Entry) -> str:
    edge = short(entry.threshold)
    return f"-{edge} and {edge}" if entry.better == "equal" else edge


def growth(held: Dial) -> str | None:
    """How the effect grows along the dial, in words."""
    if held.growth is None:
        return None
    change = interval(held.growth.effect, held.growth.ci)
    found = f"Change of the effect from the weakest setting to the strongest: {change}"
    return found + (f"; the claim that it grows: {held.growth.verdict}." if held.growth.verdict else ".")


def curves(entry: Entry, id: str) -> Markup | None:
    """The learning curves of both arms: the mean over seeds in its band."""
    held = entry.curves
    if held is None:
        return None
    arms = [(name, thinned(c)) for name in ("control", "treatment") if (c := getattr(held, name)) is not None and c.x]
    every = [v for _, c in arms for v in (*c.mean, *c.low, *c.high)]
    if not finite(every):
        return None
    x = axis([v for _, c in arms for v in c.x], LEFT, WIDTH - RIGHT, pad=0)
    y = axis(every, BASE, TOP)
    out: list[Markup] = [rows(y)]
    ticks = x.ticks(4)
    for value, word in zip(ticks, tick_words(ticks), strict=True):
        at = x.at(value)
        out.append(text(at, BASE + 16, word, anchor="end" if at > WIDTH - 24 else "middle"))
    lines, said = [], []
    for name, c in arms:
        band = [(a, lo, hi) for a, lo, hi in zip(c.x, c.low, c.high, strict=True) if None not in (a, lo, hi)]
        there = [(x.at(a), y.at(hi)) for a, _, hi in band]  # type: ignore[arg-type]
        back = [(x.at(a), y.at(lo)) for a, lo, _ in reversed(band)]  # type: ignore[arg-type]
        if there:
            out.append(path(there + back, f"band {name}", closed=True))
        known = [(a, m) for a, m in zip(c.x, c.mean, strict=True) if a is not None and m is not None]
        if known:
            lines.append(path([(x.at(a), y.at(m)) for a, m in known], f"curve {name}"))
            first, last = short(known[0][1]), short(known[-1][1])
            end = f"{held.x_name} {short(known[-1][0])}"
            said.append(f"{getattr(entry, name) or name} goes from {first} to {last} at {end}")
    out += lines
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, clipped(held.x_name, 44), class_="axis"))
    note = f"{held.metric or entry.metric or 'metric'}, mean over seeds with its band"
    return figure(id, "Learning curves", "; ".join(said) + ".", out, note)


def thinned(curve: Curve) -> Curve:
    """The curve through at most about `POINTS` of its points, the last of them kept."""
    size = len(curve.x)
    step = math.ceil(size / POINTS)
    kept = sorted({*range(0, size, step or 1), size - 1} if size else ())
    return Curve(*(tuple(held[i] for i in kept) for held in (curve.x, curve.mean, curve.low, curve.high)))


def checks(entry: Entry, id: str) -> Markup | None:
    """How far each measured number is from the expected one, inside the tolerance or not."""
    offs = [c.off for c in entry.checks]
    if not finite(offs):
        return None
    widths = [c.tolerance for c in entry.checks]
    y = axis((*offs, *(v for w in finite(widths) for v in (-w, w)), 0.0), BASE, TOP)
    out: list[Markup] = [rows(y), line(LEFT, y.at(0), WIDTH - RIGHT, y.at(0), "threshold")]
    step = (WIDTH - LEFT - RIGHT) / len(offs)
    for i, (off, width) in enumerate(zip(offs, widths, strict=True)):
        x = round(LEFT + (i + 0.5) * step, 1)
        if width is not None:
            half = round(min(step * 0.4, 14), 1)
            out.append(rect(round(x - half, 1), y.at(width), 2 * half, y.at(-width) - y.at(width), "side"))
        if off is not None:
            out.append(dot(x, y.at(off), "treatment", 4 if len(offs) < 40 else 2.5))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "numbers in the order of the table", class_="axis"))
    said = f"The largest difference is {short(worst(entry))}, where {short(tolerated(entry))} is allowed."
    return figure(id, "Measured - expected", said, out, "shaded: the tolerance")


def worst(entry: Entry) -> float | None:
    """The largest difference, in absolute value, between what was measured and what was expected."""
    return max(map(abs, finite(c.off for c in entry.checks)), default=None)


def tolerated(entry: Entry) -> float | None:
    """The difference allowed where the difference is largest."""
    found = [c for c in entry.checks if c.off is not None]
    return max(found, key=lambda c: abs(c.off or 0.0)).tolerance if found else None


def legend(entry: Entry, several: bool) -> Markup | None:
    """Which mark is which arm."""
    if not several:
        return None
    items: Sequence[tuple[str, str]] = (("treatment", entry.treatment), ("control", entry.control))
    marks = []
    for arm, name in items:
        mark = tag("svg", line(1, 7, 25, 7, f"curve {arm}"), dot(13, 7, arm), viewBox="0 0 26 14", aria_hidden="true")
        marks.append(tag("span", mark, f"{arm}: {name}" if name and name != arm else arm))
    return tag("p", join(marks), class_="legend plot")
