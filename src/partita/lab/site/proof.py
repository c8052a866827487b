"""A piece of evidence on the page of its paper: verdict and rule, plots, raw values, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from partita.lab.markup import Markup, join, tag
from partita.lab.report import duration
from partita.lab.site import plots
from partita.lab.site.evidence import Arms, Entry
from partita.lab.site.figures import aligned, interval, intervals, mean, short
from partita.lab.site.fronts import fronts
from partita.lab.site.library import Library
from partita.lab.site.page import anchor, badge, code, count, link
from partita.lab.site.text import fields, inline, words


def proof(entry: Entry, number: int, library: Library) -> Markup:
    """The section of one statement."""
    id = anchor(number)
    every = (plots.values, plots.effect, plots.dial, plots.curves, fronts, plots.checks)
    shown = [plot for draw in every if (plot := draw(entry, f"{id}-{draw.__name__}")) is not None]
    two_arms = bool(entry.values.treatment or entry.curves)
    out = [
        tag("h3", entry.statement, id=id),
        tag("p", badge(entry.verdict), " ", tag("strong", _effect(entry)), " ", _scale(entry)),
        tag("p", _arms(entry, library)) if entry.treatment or entry.control or entry.task else None,
        tag("p", tag("b", "How the verdict is computed. "), inline(entry.rule or "Not recorded.")),
        tag("p", tag("b", "Analysis. "), inline(entry.note), class_="analysis") if entry.note else None,
    ]
    if shown:
        out += [plots.legend(entry, two_arms), tag("div", *shown, class_="plots")]
    else:
        out.append(tag("p", "No values are recorded that could be drawn.", class_="quiet"))
    if entry.dial is not None and (said := plots.growth(entry.dial)):
        out.append(tag("p", said))
    out += [_values(entry), _dial(entry), _checks(entry), _tuning(entry), _made(entry)]
    return tag("section", *out, class_="proof")


def _effect(entry: Entry) -> str:
    if entry.kind == "identity":
        return f"largest difference {short(plots.worst(entry))}, allowed {short(plots.tolerated(entry))}"
    if entry.effect is None:
        return "effect not recorded"
    return f"effect {interval(entry.effect, entry.ci)}" + (" ×" if entry.kind == "ratio" else "")


def _scale(entry: Entry) -> Markup:
    """What the effect is of, in quiet words."""
    if entry.kind == "identity":
        return tag("span", count(len(entry.checks), "number"), class_="quiet")
    about = [plots.effect_name(entry)]
    if entry.metric:
        about.append(entry.metric if entry.better == "equal" else f"{entry.metric}, {entry.better} is better")
    if entry.seeds is not None:
        about.append(count(entry.seeds, "seed"))
    about.append(f"it must lie {plots.needed(entry)}")
    return tag("span", "; ".join(about), class_="quiet")


def _arms(entry: Entry, library: Library) -> Markup:
    out: list[Any] = []
    for arm, joint in (("treatment", ""), ("control", " against ")):
        if name := getattr(entry, arm):
            out += [joint if out else "", recipe(name, library)]
    if entry.task:
        known = entry.task in library.slots.get("task", {})
        out += [" on " if out else "On ", link(entry.task, f"../slots/task.html#{entry.task}") if known else entry.task]
    return join((*out, "." if out else ""))


def recipe(name: str, library: Library) -> Markup:
    """A recipe by name, with the way to where it is told; an arm that is no recipe is its name."""
    home = library.homes.get(name)
    return link(code(name), f"../papers/{home}.html#recipe-{name}") if home in library.works else code(name)


def table(heads: Iterable[Any], rows: Iterable[Iterable[Any]]) -> Markup:
    """A table of numbers that scrolls in its own frame where it is wider than the page."""
    head = tag("thead", tag("tr", *(tag("th", h, scope="col") for h in heads)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag(
        "div",
        tag("table", head, body, class_="numbers"),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="table",
    )


def _values(entry: Entry) -> Markup | None:
    if not (entry.values.treatment or entry.values.control):
        return None
    return tag("details", tag("summary", "Raw values"), _pairs(entry, entry.values), open="")


def _pairs(entry: Entry, arms: Arms) -> Markup:
    size = max(len(arms.treatment), len(arms.control))
    blank = (None,) * size
    treatment, control = arms.treatment or blank, arms.control or blank
    seeds = entry.seed_list if len(entry.seed_list) == size else tuple(f"{i + 1}." for i in range(size))
    ratio = entry.kind == "ratio"
    gaps = [_gap(a, b, ratio) for a, b in zip(treatment, control, strict=True)]
    columns = [aligned(*held, mean(held), digits=4) for held in (control, treatment)]
    last = aligned(*gaps, _gap(mean(treatment), mean(control), ratio), digits=4)
    heads = ("Seed", entry.control or "control", entry.treatment or "treatment", "Ratio" if ratio else "Difference")
    return table(heads, zip((*seeds, "mean"), *columns, last, strict=True))


def _gap(a: float | None, b: float | None, ratio: bool) -> float | None:
    if a is None or b is None:
        return None
    return a - b if not ratio else a / b if b else None


def _dial(entry: Entry) -> Markup | None:
    if entry.dial is None:
        return None
    settings = entry.dial.settings
    means = (aligned(*(mean(getattr(s.values, arm)) for s in settings), digits=4) for arm in ("control", "treatment"))
    effects = intervals((s.effect, s.ci) for s in settings)
    rows = zip((s.label for s in settings), *means, effects, strict=True)
    heads = (entry.dial.name, entry.control or "control", entry.treatment or "treatment", "Effect [95%]")
    every = [s for s in entry.dial.settings if s.values.treatment or s.values.control]
    raw = [item for s in every for item in (tag("h4", f"{entry.dial.name}: {s.label}"), _pairs(entry, s.values))]
    return join((
        tag("details", tag("summary", "The dial, setting by setting: means and effects"), table(heads, rows), open=""),
        tag("details", tag("summary", "Raw values of each setting"), *raw) if raw else None,
    ))  # fmt: skip


def _checks(entry: Entry) -> Markup | None:
    if not entry.checks:
        return None
    rows = [
        (c.label or "value", short(c.expected, 8), short(c.measured, 8), short(c.off, 3), short(c.tolerance, 3))
        for c in entry.checks
    ]
    heads = ("Number", "Expected", "Measured", "Difference", "Tolerance")
    return tag("details", tag("summary", "Expected and measured"), table(heads, rows), open="")


def _tuning(entry: Entry) -> Markup:
    if entry.tuning is None:
        about = tag("p", "Not recorded." if entry.kind != "identity" else "Nothing is tuned.", class_="quiet")
    else:
        about = fields(entry.tuning)
    return tag("details", tag("summary", "Tuning"), about)


def _made(entry: Entry) -> Markup:
    commit: Any = entry.commit or "not recorded"
    if entry.dirty:
        commit = join((commit, " ", tag("span", "dirty: with changes that were not committed", class_="warn")))
    about = {
        "date": entry.date or "not recorded",
        "commit": commit,
        "duration": duration(entry.duration),
        "machine": entry.machine or "not recorded",
        "versions": entry.versions or "not recorded",
    }
    about |= {f"task: {k}": words(v) for k, v in entry.task_settings.items()}
    about |= {f"both arms: {k}": words(v) for k, v in entry.settings.items()}
    return tag("details", tag("summary", "How it was made"), fields(about), open="")
