"""The page of a slot: all parts that fill it, side by side."""

from __future__ import annotations

from partita.lab.markup import Markup, join, tag
from partita.lab.site.library import Filling, Library, base_of, doc_of
from partita.lab.site.page import code, commas, count, link, page
from partita.lab.site.proof import recipe
from partita.lab.site.text import prose
from partita.lab.site.work import told


def slot_page(slot: str, library: Library, home: str | None) -> str:
    """The page."""
    fillings = list(library.slots[slot].values())
    first = next((f.cls for f in fillings if f.cls is not None), None)
    others = commas(link(s, f"{s}.html") if s != slot else tag("b", s) for s in library.slots)
    return page(
        f"{slot}: parts",
        tag("header", tag("h1", "Slot ", code(slot)), prose(doc_of(base_of(first))) if first is not None else None),
        tag("p", "Slots: ", others, class_="slots"),
        tag("p", f"{count(len(fillings), 'part')}: ", commas(link(f.name, f"#{f.name}") for f in fillings), "."),
        tag("div", *(_card(f, library) for f in fillings), class_="cards"),
        up="../", home=home, wide=True,
    )  # fmt: skip


def _card(filling: Filling, library: Library) -> Markup:
    paper = library.works.get(filling.paper or "")
    brought = None
    if paper is not None:
        brought = tag("p", "From ", link(paper.title, f"../papers/{paper.key}.html"), ".")
    users = filling.used
    used: Markup | None = None
    if filling.slot not in ("task", "policy"):
        names = commas(recipe(name, library) for name in users)
        used = tag("p", f"In {count(len(users), 'recipe')}: ", names, ".")
        used = used if users else tag("p", "In no recipe.", class_="quiet")
    where = tag("p", f"Only in {filling.domains[0]}.", class_="quiet") if len(filling.domains) == 1 else None
    body = join((told(filling), where, brought, used))
    return tag("article", tag("h2", code(filling.name)), body, class_="card", id=filling.name)
