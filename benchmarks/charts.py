"""The results of benchmarks as bars: the page `docs/benchmark-charts.md`, SVG within Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import PARTS, machine, short

from partita.lab.markup import Markup, join, tag
from partita.lab.site.figures import line, rect, text

WIDTH, LEFT, RIGHT, ROW, TOP = 720, 190, 210, 26, 8
STYLE = """<style>
.bars svg { width: 100%; max-width: 720px; height: auto; }
.bars text { font-size: 12.5px; fill: currentColor; }
.bars .ours { fill: #0b6cb3; } .bars .peer { fill: #a8adb4; } .bars .floor { fill: #d9dce0; }
.bars .products { fill: #0b6cb3; } .bars .operators { fill: #6fa8d6; } .bars .autograd { fill: #a8adb4; }
.bars .between { fill: #d9dce0; }
.bars .whisker { stroke: currentColor; stroke-width: 1.5; }
</style>"""


@dataclass(frozen=True)
class Bar:
    """One side of a measure: its median (None: never), least and largest, and its part: ours, peer or floor.

    rivals: the peers that a target or a ratio compares it with; all of them where there is none.
    """

    name: str
    median: float | None
    low: float | None
    high: float | None
    role: str = "ours"
    rivals: tuple[str, ...] = ()


def higher(field: str) -> bool:
    """Whether more of it is better."""
    return field.endswith("_per_second") or field in ("share", "area", "last")


def best(bars: list[Bar], field: str, rivals: tuple[str, ...] = ()) -> Bar | None:
    """The best of the peers, or of those named, if there is any."""
    peers = [b for b in bars if b.role == "peer" and b.median and (not rivals or b.name in rivals)]
    return (max if higher(field) else min)(peers, key=lambda b: b.median or 0.0, default=None)


def chart(bars: list[Bar], field: str) -> Markup:
    """Bars with whiskers from the least to the largest; behind each of ours its ratio to the best peer."""
    known = [v for b in bars for v in (b.median, b.high) if v is not None and math.isfinite(v)]
    unit = (WIDTH - LEFT - RIGHT) / (max(known, default=0.0) or 1.0)
    drawn, said = [], []
    for i, b in enumerate(bars):
        y = TOP + i * ROW
        middle = y + ROW / 2
        word, end = short(b.median), LEFT
        if b.median is not None:
            drawn.append(rect(LEFT, y + 4, b.median * unit, ROW - 8, b.role))
            low, high = (round(LEFT + unit * (b.median if v is None else v), 1) for v in (b.low, b.high))
            if high > low:
                drawn.append(line(low, middle, high, middle, "whisker"))
                drawn += [line(x, middle - 4, x, middle + 4, "whisker") for x in (low, high)]
            end = round(max(high, LEFT + unit * b.median), 1)
            rival = best(bars, field, b.rivals)
            if rival is not None and rival.median and b.role == "ours":
                word += f"  ({short(b.median / rival.median)} x {rival.name})"
        drawn.append(text(LEFT - 8, middle + 4, b.name, anchor="end"))
        drawn.append(text(end + 8, middle + 4, word, anchor="start"))
        said.append(f"{b.name} {word}")
    better = "more" if higher(field) else "less"
    head = tag("p", tag("strong", field), f", {better} is better")
    return picture(head, f"{field}: {'; '.join(said)}", drawn, len(bars))


def picture(head: Markup, title: str, drawn: list[Markup], rows: int) -> Markup:
    """Rows that have been drawn, under their heading; the title is what it says to those who do not see it."""
    height = 2 * TOP + ROW * rows
    svg = tag("svg", tag("title", title), *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img")
    return tag("div", head, svg, class_="bars")


def sides(found: dict[str, Any], measure: str, field: str) -> list[Bar]:
    """The sides of a measure as bars."""
    out = []
    for side in found["sides"]:
        if side["measure"] == measure:
            role = side.get("role") or ("ours" if "partita" in side["versions"] else "peer")
            span = side[field]
            about = (measure, field, side["side"])
            rivals = tuple(r["theirs"] for r in found["ratios"] if (r["measure"], r["field"], r["ours"]) == about)
            out.append(Bar(side["side"], span["median"], span["min"], span["max"], role, rivals))
    return out


def anatomy(pieces: list[dict[str, Any]]) -> Markup:
    """Of what shares the time of a call is made, from the matrix products on the left to Python on the right."""
    unit, drawn, said = WIDTH - LEFT - RIGHT, [], []
    for i, piece in enumerate(pieces):
        y, left, name = TOP + i * ROW, 0.0, f"{piece['case']}: {piece['piece']}"
        for kind in PARTS:
            drawn.append(rect(round(LEFT + left * unit, 1), y + 4, piece[kind] * unit, ROW - 8, kind))
            left += piece[kind]
        word = f"{short(piece['whole'])} ms: " + ", ".join(f"{piece[kind]:.0%}" for kind in PARTS)
        drawn.append(text(LEFT - 8, y + ROW / 2 + 4, name, anchor="end"))
        drawn.append(text(WIDTH - RIGHT + 8, y + ROW / 2 + 4, word, anchor="start"))
        said.append(f"{name} {word}")
    legend = tag("p", tag("strong", "a call"), ": matrix products, other operators, autograd, all else (the lightest)")
    return picture(legend, "; ".join(said), drawn, len(pieces))


def cases(found: dict[str, Any]) -> list[Markup]:
    """What `compare` adds to its runs, credit to a step, or what a call is made of: a bar a case."""
    if found["benchmark"] == "anatomy":
        return [anatomy([c for c in found["cases"] if c["operators"] is not None])]
    if found["benchmark"] == "anchors":
        return [chart([Bar(c["case"], c["overhead"], None, None) for c in found["cases"]], "overhead")]
    bars = []
    for case in found["cases"]:
        spread = [row["inside"] for row in case["repeats"]]
        bars.append(Bar(" and ".join(case["arms"]), case["inside"], min(spread), max(spread)))
    return [chart(bars, "inside")]


def charts(folder: Path) -> str:
    """The page: a picture of every number that a target or a ratio is about."""
    out = [
        "# Benchmarks in pictures", "",
        "Generated by `make docs` from `benchmarks/results`; [the numbers](benchmarks.md). Medians, whiskers from the",
        "least to the largest; in brackets the ratio to the best peer that it is set against.", "", STYLE, "",
    ]  # fmt: skip
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        runs = f", {found['repeats']} runs a side" if "repeats" in found else ""
        about = f"{found['date']}, commit {found['commit']}{runs}. Machine: {machine(found)}."
        out += [f"## {path.stem}", "", about, ""]
        drawn = cases(found) if "cases" in found else []
        for measure in dict.fromkeys(side["measure"] for side in found.get("sides", ())):
            fields = dict.fromkeys(r["field"] for r in found["ratios"] if r["measure"] == measure)
            drawn += [chart(sides(found, measure, field), field) for field in fields]
        out += [join(drawn), ""]
    return "\n".join(out)
