"""The page of a paper: what it says, what it changes, its parts and recipes, its evidence, its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from partita.core.part import Part, equations
from partita.core.recipe import Recipe, differences
from partita.lab.catalogue import describe
from partita.lab.markup import Markup, join, tag
from partita.lab.site import theory
from partita.lab.site.library import Claimed, Filling, Library, Work, defaults, doc_of
from partita.lab.site.page import anchor, badge, code, commas, count, link, page
from partita.lab.site.proof import proof, recipe
from partita.lab.site.text import fields, highlight, prose

NO_EVIDENCE = "No evidence yet."


def work_page(work: Work, library: Library, home: str | None) -> str:
    """The page."""
    parts = [held for names in library.slots.values() for held in names.values() if held.paper == work.key]
    sections = {
        "changes": ("What it changes", _changes(work, library)),
        "evidence": ("Evidence", _evidence(work, library)),
        "figures": ("Measured beside the theory", _figures(work)),
        "run": ("Run it", tag("pre", "\n".join(commands(work, parts, library)), class_="block")),
        "parts": ("Parts", join(_part(held) for held in parts) if parts else None),
        "recipe": ("Recipes" if len(work.recipes) > 1 else "Recipe", _recipes(work, library)),
        "code": ("Code", tag("pre", highlight(work.source), class_="block source", tabindex="0")),
    }
    shown = {id: (name, body) for id, (name, body) in sections.items() if body is not None}
    ways = [link(name, f"#{id}") for id, (name, _) in shown.items()]
    return page(
        f"{work.key}: {work.title}",
        tag("header", tag("h1", work.title), tag("p", *_about(work), class_="quiet"), _verdicts(work)),
        tag("nav", *ways, class_="contents", aria_label="On this page"),
        tag("div", prose(_body(work.doc)), class_="prose"),
        *(tag("section", tag("h2", name, id=id), body) for id, (name, body) in shown.items()),
        up="../", home=home,
    )  # fmt: skip


def _body(doc: str) -> str:
    """A docstring without its first paragraph, which is the reference that the header gives."""
    head, _, rest = doc.strip().partition("\n\n")
    return rest or head


def _about(work: Work) -> Iterator[Any]:
    paper = getattr(work.module, "PAPER", None)
    yield code(work.key)
    yield f" · {work.kind} · {work.family}" + (f" · loop {work.loop}" if work.loop else "")
    for fact in (getattr(paper, "authors", None), getattr(paper, "year", None)):
        if fact:
            yield f" · {fact}"
    url = getattr(paper, "url", None)
    if work.arxiv:
        yield " · "
        yield link(f"arXiv:{work.arxiv}", f"https://arxiv.org/abs/{work.arxiv}")
    if url:
        yield " · "
        yield link("source", url) if url.startswith(("https://", "http://")) else url
    if work.module is None:
        yield " · "
        yield tag("span", "could not be imported here: equations and recipes are missing", class_="warn")


def _verdicts(work: Work) -> Markup:
    if not work.found:
        return tag("p", NO_EVIDENCE, class_="quiet")
    lines = (tag("li", link(badge(e.verdict), f"#{anchor(i)}"), " ", e.statement) for i, e in enumerate(work.found, 1))
    return tag("ul", *lines, class_="verdicts")


def _figures(work: Work) -> Markup | None:
    if not work.figures:
        return None
    drawn = (tag("div", theory.drawing(held, f"figure-{i}")) for i, held in enumerate(work.figures, 1))
    return tag("div", *drawn, class_="plots")


def _comparisons(work: Work) -> list[tuple[str, str]]:
    """The (treatment, control) of every claim, stated or tested, each once."""
    stated, tested = [(c.treatment, c.control) for c in work.claims], [(e.treatment, e.control) for e in work.found]
    return [pair for pair in dict.fromkeys((*stated, *tested)) if all(pair)]


def _changes(work: Work, library: Library) -> Markup:
    slots = commas(link(s, f"../slots/{s}.html") if s in library.slots else s for s in work.changes)
    out = [tag("p", "Slots: ", slots, ".") if work.changes else tag("p", "It changes no slot.")]
    for treatment, control in _comparisons(work):
        ours, theirs = library.recipes.get(treatment), library.recipes.get(control)
        if ours is not None and theirs is not None:
            out.append(_difference(treatment, ours, control, theirs, library))
    return join(out)


def _difference(treatment: str, ours: Recipe, control: str, theirs: Recipe, library: Library) -> Markup:
    found = differences(ours, theirs)
    names = join((recipe(treatment, library), " and ", recipe(control, library)))
    if not found:
        return tag("p", names, " are the same recipe.")
    rows = (
        tag(
            "tr", tag("th", name, scope="row"),
            tag("td", tag("div", held(other, library, True)), data_label=control),
            tag("td", tag("div", held(mine, library, True)), data_label=treatment, class_="differs"),
        )
        for name, mine, other in found
    )  # fmt: skip
    heads = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("Field", control, treatment))))
    total = f" of {len(ours.slots) + len(ours.numbers())}" if ours.loop == theirs.loop else ""
    return join((
        tag("p", names, f" differ in {count(len(found), 'field')}{total}:"),
        tag("table", heads, tag("tbody", *rows), class_="stack compare"),
    ))  # fmt: skip


def held(value: Any, library: Library, with_equations: bool = False) -> Markup:
    """What a field of a recipe holds: parts with their settings (and equations), or a number."""
    if isinstance(value, tuple) and all(isinstance(v, Part) for v in value):
        if not value:
            return tag("span", "none", class_="quiet")
        return join(tag("div", held(v, library, with_equations)) for v in value)
    if not isinstance(value, Part):
        return tag("span", "chosen by the task", class_="quiet") if value is None else code(str(value))
    known, name = library.filling(value), value.part_name()
    way = link(name, f"../slots/{known.slot}.html#{name}") if known is not None else name
    text = equations(type(value)) if with_equations else ""
    shown = tag("span", way, describe(value).removeprefix(name), class_="code")
    return join((shown, tag("pre", text) if text else None))


def _part(filling: Filling) -> Markup:
    way = link(code(f"--{filling.slot} {filling.name}"), f"../slots/{filling.slot}.html#{filling.name}")
    return tag("article", tag("h3", way), told(filling), class_="part")


def told(filling: Filling) -> Markup:
    """What a part says of itself, and its settings."""
    if filling.cls is None:
        return tag("p", filling.summary, " ", tag("span", "It could not be imported here.", class_="warn"))
    settings = defaults(filling.cls)
    listed = commas(code(f"{k} = {v}") for k, v in settings.items())
    about = tag("p", "Settings: ", listed, class_="settings") if settings else tag("p", "No settings.", class_="quiet")
    return join((prose(doc_of(filling.cls) or filling.summary), about))


def _recipes(work: Work, library: Library) -> Markup:
    """Every recipe slot by slot; numbers that the task settles are left out."""
    if not work.recipes:
        return tag("p", f"It has no recipe; its kind is {work.kind}.", class_="quiet")
    out = []
    for i, name in enumerate(work.recipes):
        found = library.recipes.get(name)
        if found is None:
            body = tag("p", "It could not be imported here.", class_="warn")
        else:
            numbers = ((k, v) for k, v in found.numbers().items() if v is not None)
            table = {slot: held(getattr(found, slot), library) for slot in found.slots}
            table["numbers"] = tag("div", commas(code(f"{k} = {v}") for k, v in numbers), class_="settings")
            body = fields(table)
        out.append(tag("details", tag("summary", code(name)), body, id=f"recipe-{name}", open="" if i == 0 else None))
    return join(out)


def commands(work: Work, parts: list[Filling], library: Library) -> list[str]:
    """Command lines that run the work, change another recipe by its parts, and repeat its evidence."""
    named = (*(c.task for c in work.claims), *(e.task for e in work.found))
    tasks = [task for task in named if task in library.slots.get("task", {})]
    task = f" --task {tasks[0]}" if tasks else ""
    out = [f"partita train {name}{task}" for name in work.recipes]
    pairs = [pair for pair in _comparisons(work) if all(name in library.recipes for name in pair)]
    control = pairs[0][1] if pairs else None
    if control is not None:
        out += [f"partita train {control}{task} --{p.slot} {p.name}" for p in parts if p.slot in work.changes]
    out += [f"partita diff {treatment} {other}" for treatment, other in pairs]
    if work.claims or work.found:
        out += [f"partita claim {work.key}", f"partita claim {work.key} --check"]
    return [*out, f"partita show {work.key}"]


def _evidence(work: Work, library: Library) -> Markup:
    out = [proof(entry, number, library) for number, entry in enumerate(work.found, 1)]
    out += [_open(claim, work, library) for claim in work.open_claims]
    if not out:
        out.append(tag("p", NO_EVIDENCE, " No claim is stated here."))
    return join(out)


def _open(claim: Claimed, work: Work, library: Library) -> Markup:
    about = None
    if claim.treatment and claim.control:
        on = f" on {claim.task}" if claim.task else ""
        measured = f", by {claim.metric}" if claim.metric else ""
        arms = Markup(" against ".join(recipe(name, library) for name in (claim.treatment, claim.control)))
        about = tag("p", arms, f"{on}{measured}.")
    why = "No evidence yet for this statement as it is worded now." if work.found else NO_EVIDENCE
    return tag("section", tag("h3", claim.statement), tag("p", tag("b", why)), about)
