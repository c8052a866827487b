"""The first page: every work held in one table, with its verdict; filters need a script, the table does not."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from typing import Any

from partita.lab.markup import Markup, join, tag
from partita.lab.site.evidence import VERDICTS, Entry
from partita.lab.site.figures import DASH, interval, short
from partita.lab.site.library import Library, Work
from partita.lab.site.page import ASSETS, anchor, badge, commas, count, link, page
from partita.lab.site.plots import tolerated, worst

COLUMNS = ("Key", "Title", "Family", "Kind", "Loop", "Slots changed", "Verdict", "Effect [95%]", "Seeds", "Date")
NONE = "none"  # the value of the verdict filter for works without evidence


def listing(library: Library, home: str | None) -> str:
    """The page."""
    works = list(library.works.values())
    slots = commas(link(slot, f"slots/{slot}.html") for slot in library.slots)
    strays = None
    if library.strays:
        names = ", ".join(library.strays)
        strays = tag("p", f"Files in the evidence folder that belong to no work: {names}.", class_="quiet")
    return page(
        "Partita: evidence",
        tag("h1", "The evidence"),
        tag("p", "Every work held here, the claim that was tested, and what came of it on a laptop, good or bad."),
        _counts(works),
        tag("p", "Parts side by side, by slot: ", slots, class_="slots"),
        _filters(works),
        tag("p", tag("span", count(len(works), "work"), id="shown", role="status"), class_="quiet"),
        tag("table", _head(), tag("tbody", *map(_row, works)), class_="works", id="works"),
        tag("p", "No work matches.", id="nothing", hidden="", class_="quiet"),
        strays,
        home=home, wide=True, code=(ASSETS / "site.js").read_text(encoding="utf-8"),
    )  # fmt: skip


def _counts(works: list[Work]) -> Markup:
    tested = [work for work in works if work.found]
    found = Counter(entry.verdict for work in tested for entry in work.found)
    total = sum(found.values())
    pieces = [count(len(works), "work"), f"{len(tested)} with evidence, {len(works) - len(tested)} without"]
    out = [tag("p", f"{', '.join(pieces)}. ", f"{count(total, 'statement')} tested:" if total else "No evidence yet.")]
    if total:
        marks = (tag("li", badge(verdict), f" {found[verdict]}") for verdict in VERDICTS)
        out.append(tag("ul", *marks, class_="counts"))
    return join(out)


def _filters(works: list[Work]) -> Markup:
    families = sorted({work.family for work in works})
    slots = sorted({slot for work in works for slot in work.changes})
    verdicts = [*((v, v) for v in VERDICTS), (NONE, "no evidence yet")]
    return tag(
        "form",
        tag("label", "Search", Markup('<input type="search" name="text" autocomplete="off">')),
        _choice("Family", "family", ((f, f) for f in families)),
        _choice("Slot", "slot", ((s, s) for s in slots)),
        _choice("Verdict", "verdict", verdicts),
        tag("button", "Clear", type="reset"),
        id="filters", class_="filters", role="search", hidden="",
    )  # fmt: skip


def _choice(name: str, field: str, options: Iterable[tuple[str, str]]) -> Markup:
    every = Markup('<option value="">all</option>')
    rest = (Markup(f'<option value="{html.escape(value)}">{html.escape(word)}</option>') for value, word in options)
    return tag("label", name, tag("select", every, *rest, name=field))


def _head() -> Markup:
    return tag("thead", tag("tr", *(tag("th", name, scope="col") for name in COLUMNS)))


def _row(work: Work) -> Markup:
    target = f"papers/{work.key}.html"
    found = list(enumerate(work.found, 1))
    lines: dict[str, list[Any]] = {
        "Verdict": [link(badge(entry.verdict), f"{target}#{anchor(i)}") for i, entry in found] or ["No evidence yet"],
        "Effect [95%]": [_effect(entry) for _, entry in found] or [DASH],
        "Seeds": [entry.seeds if entry.seeds is not None else DASH for _, entry in found] or [DASH],
        "Date": [entry.date or DASH for _, entry in found] or [DASH],
    }
    cells: dict[str, list[Any]] = {
        "Key": [link(work.key, target)], "Title": [work.title], "Family": [work.family], "Kind": [work.kind],
        "Loop": [work.loop or DASH],
        "Slots changed": [commas(link(s, f"slots/{s}.html") for s in work.changes) if work.changes else DASH],
        **lines,
    }  # fmt: skip
    return tag(
        "tr",
        *(
            tag(
                "td", *(tag("div", line) for line in held), data_label=name,
                class_=None if found or name not in lines else "quiet none" if name == "Verdict" else "quiet blank",
            )
            for name, held in cells.items()
        ),
        data_family=work.family, data_slots=" ".join(work.changes),
        data_verdicts=" ".join(sorted({entry.verdict for _, entry in found})) or NONE,
    )  # fmt: skip


def _effect(entry: Entry) -> str:
    if entry.kind == "identity":
        return f"off by {short(worst(entry), 2)}, {short(tolerated(entry), 2)} allowed" if entry.checks else DASH
    return interval(entry.effect, entry.ci) + (" ×" if entry.kind == "ratio" and entry.effect is not None else "")
