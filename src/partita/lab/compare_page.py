"""The page of a comparison: one self-contained HTML file, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.lab import compare_plots as plots
from partita.lab.checkpoint import write_text
from partita.lab.compared import AXES, WORDS, bands, curve_name, few, number, shown, summary
from partita.lab.comparison import Comparison
from partita.lab.markup import Markup, join, tag
from partita.lab.records import Record, read, title
from partita.lab.report import ASSETS, configuration, differing, duration, swatch

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
METHODS = (
    ("Same conditions", "A seed decides the initial weights, the problems and their order, and the problems of the "
     "evaluation: arms with the same seed meet the same. Differences are taken seed by seed."),
    ("Mean", "Student's interval over seeds, cut at 0 and 1 where the score is a share."),
    ("Interquartile mean", "The mean without the lowest and the highest quarter of the seeds; percentile interval of "
     "the bootstrap over seeds (Agarwal et al. 2021)."),
    ("Difference", "Student's interval of the paired differences. With several arms against the first, each interval "
     "is taken at level 1 - 0.05 / arms (Bonferroni), so that all of them are right at once in 95% of comparisons. "
     "An arm is called better or worse when its interval excludes 0."),
    ("p", "Exact sign-flip permutation test of the paired differences up to 12 seeds (the least p is then 2 to the "
     "power of 1 - seeds), the paired t test beyond; adjusted after Holm (1979) where there are several arms."),
    ("Probability of improvement", "How likely a run of the arm is to beat a run of the first, a tie counting half "
     "(Mann-Whitney); Newcombe's interval."),
    ("Performance profile", "The share of seeds beyond each score; Wilson's pointwise band."),
    ("Learning curves", "Mean over seeds with Student's pointwise interval, over the range that all seeds cover; each "
     "seed's curve is first averaged over a twentieth of its run. Long bands are cut at the edge of the plot."),
    ("Area", "Mean height of the learning curve over the range that all runs of all arms cover."),
    ("Time to threshold", "Where the running mean over ten steps first reaches it; the median counts a seed that never "
     "does as infinitely late."),
)  # fmt: skip


def page(comparison: Comparison, found: Mapping[str, Any] | None = None, target: Path | None = None) -> Path:
    """Write the page of a comparison to `target`, by default `report.html` in its folder; whole or not at all.

    found: its summary. Where some runs are not finished, the page is of the seeds that all arms have finished.
    """
    asked = len(comparison.seeds)
    if found is None:
        comparison = replace(comparison, seeds=comparison.finished())
        found = summary(comparison)
    target = target or comparison.folder / "report.html"
    if target.is_dir():
        raise UserError(f"--out {target}: is a folder; name a file, {target / 'report.html'} for instance")
    try:
        write_text(target, html(comparison, found, asked))
    except OSError as error:
        raise UserError(f"--out {target}: cannot be written: {error.strerror}; choose another place") from error
    return target


def html(comparison: Comparison, found: Mapping[str, Any], asked: int) -> str:
    """The whole page."""
    labels = list(found["arms"])
    records = {
        label: [read(comparison.job(label, seed).folder / "run", label) for seed in comparison.seeds]
        for label in labels
    }
    firsts = [held[0] for held in records.values()]
    name = f"{_listed(labels) if len(labels) < 5 else f'{len(labels)} arms'} on {firsts[0].task}"
    body = [
        tag("header", tag("h1", name), tag("p", _subtitle(found, asked), class_="quiet")),
        _result(found, firsts),
        tag("section", tag("h2", "What the arms are"), differing(firsts) if len(firsts) > 1 else None),
        _learning(comparison, labels),
        _efficiency(found),
        _seeds(found, records),
        tag("section", tag("h2", "Configuration"), *(configuration(run, i, False) for i, run in enumerate(firsts))),
        tag("section", tag("h2", "Environment"), _environment([run for held in records.values() for run in held])),
        tag("section", tag("h2", "How it is computed"), _methods()),
    ]
    style = "".join((ASSETS / f"{name}.css").read_text(encoding="utf-8") for name in ("report", "site", "compare"))
    head = [
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", f"Partita: {name}"),
        Markup(f"<style>{style}</style>"),
    ]
    whole = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return "<!doctype html>\n" + whole.encode("utf-8", "replace").decode() + "\n"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _subtitle(found: Mapping[str, Any], asked: int) -> str:
    seeds = found["seeds"]
    count = f"{len(seeds)} paired seeds ({_ranges(seeds)})" if len(seeds) > 1 else f"1 seed ({seeds[0]}), no intervals"
    missing = f" {asked - len(seeds)} more are not finished." if asked > len(seeds) else ""
    return f"Compared by {found['metric']}, {found['better']} is better, over {count}.{missing} Intervals are 95%."


def _ranges(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _result(found: Mapping[str, Any], firsts: Sequence[Record]) -> Markup:
    arms, against, labels = found["arms"], found["against"], list(found["arms"])
    said = [
        tag("li", tag("b", label), f" against {found['baseline']}: ", _verdict(row["verdict"]))
        for label, row in against.items()
    ]
    drawn = [plots.scores(found, "scores"), plots.differences(found, "differences"), plots.profile(found, "profile")]
    before = any(about["before"] is not None for about in arms.values())
    heads = ["Arm", "Recipe", *(["Before"] if before else []), "Mean", "Interquartile mean", "Wall-clock"]
    rows = []
    for i, (label, about) in enumerate(arms.items()):
        cells: list[Any] = [_arm(i, label), tag("span", title(firsts[i]), class_="recipe")]
        if before:
            cells.append("" if about["before"] is None else number(about["before"]))
        cells += [_estimate(about["mean"]), _estimate(about["iqm"]), duration(_mean(about["seconds"]))]
        rows.append(cells)
    out = [
        tag("h2", "Result"), tag("ul", *said, class_="verdicts") if said else None,
        plots.legend(labels), tag("div", *(d for d in drawn if d), class_="plots three arms"), _table(heads, rows),
    ]  # fmt: skip
    if against:
        adjusted = "p (Holm)" if len(against) > 1 else "p"
        heads = ["Arm", f"Difference from {found['baseline']}", "Verdict", adjusted, "Probability of improvement"]
        rows = [
            [_arm(labels.index(label), label), _estimate(row["difference"]), _verdict(row["verdict"]),
             f"{row['p']:.3g}", _estimate(row["improvement"])]
            for label, row in against.items()
        ]  # fmt: skip
        out.append(_table(heads, rows))
        if told := few(len(found["seeds"])):
            out.append(tag("p", f"{told}.", class_="quiet note"))
    return tag("section", *out)


def _arm(index: int, label: str) -> Markup:
    return tag("span", swatch(index), label, class_="estimate" if len(label) < 24 else "recipe")


def _verdict(verdict: str) -> Markup:
    kind = {"holds": "good", "fails": "bad"}.get(verdict)
    return tag("span", WORDS[verdict], class_=kind)


def _estimate(triple: Sequence[float | None]) -> Markup:
    value, _, rest = shown(triple).partition(" ")
    return tag("span", tag("b", value), f" {rest}" if rest else None, class_="estimate")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """A table whose rows become blocks on a phone."""
    lines = (
        tag("tr", *(tag("td", tag("div", cell), data_label=head) for head, cell in zip(heads, row, strict=True)))
        for row in rows
    )
    return tag(
        "table", tag("thead", tag("tr", *(tag("th", h) for h in heads))), tag("tbody", *lines), class_="stack headline"
    )


def _learning(comparison: Comparison, labels: Sequence[str]) -> Markup | None:
    metric = curve_name(comparison)
    drawn = []
    for axis in AXES:
        held = bands(comparison, axis, smooth=True)
        if held and (figure := plots.curves(held, labels, metric, axis, f"curve-{axis}")) is not None:
            drawn.append(figure)
    if not drawn:
        told = tag("p", f"The runs log no {metric} at every step, so there is no curve to draw.", class_="quiet")
        return tag("section", tag("h2", "Learning"), told)
    note = "What training itself sees: sampled responses or episodes, on the problems of each step."
    return tag(
        "section", tag("h2", "Learning"), tag("p", note, class_="quiet note"), plots.legend(labels),
        tag("div", *drawn, class_="plots three arms"),
    )  # fmt: skip


def _efficiency(found: Mapping[str, Any]) -> Markup | None:
    arms = found["arms"]
    shapes = [("samples", "samples", lambda v: f"{v:,.0f}"), ("seconds", "wall-clock", duration)]
    heads = ["Arm"]
    for axis, name, _ in shapes:
        if any(f"area_{axis}" in about for about in arms.values()):
            heads += [f"Area by {name}"]
        if any(f"time_to_{axis}" in about for about in arms.values()):
            heads += [f"{name.capitalize()} to {found['threshold']:g}"]
    if len(heads) == 1:
        return None
    rows = []
    for i, (label, about) in enumerate(arms.items()):
        cells: list[Any] = [_arm(i, label)]
        for axis, _, words in shapes:
            if f"area_{axis}" in about:
                cells.append(_estimate(about[f"area_{axis}"]))
            if (times := about.get(f"time_to_{axis}")) is not None:
                when = "not reached" if times["median"] is None else words(times["median"])
                reached = f" median; {times['reached']} of {len(times['values'])} seeds"
                cells.append(join((tag("b", when), tag("small", reached, class_="quiet"))))
        rows.append([*cells, *[""] * (len(heads) - len(cells))])
    metric = found["metric"].partition(":")[0]
    note = f"Of the curves of {metric} above. "
    if found["threshold"] is None:
        note += "With --threshold X there is also the time to reach X."
    return tag("section", tag("h2", "Efficiency"), tag("p", note, class_="quiet note"), _table(heads, rows))


def _seeds(found: Mapping[str, Any], records: Mapping[str, Sequence[Record]]) -> Markup:
    """Every value, so that anyone can do other statistics."""
    arms = found["arms"]
    heads = [tag("th", "Seed"), *(tag("th", swatch(i), label) for i, label in enumerate(arms))]
    for i, label in enumerate(arms):
        heads.append(tag("th", swatch(i), tag("small", f"{label}, steps and wall-clock")))
    rows = []
    for i, seed in enumerate(found["seeds"]):
        cells = [tag("td", number(about["values"][i])) for about in arms.values()]
        for label, about in arms.items():
            wall = duration(about["seconds"][i])
            cells.append(tag("td", tag("small", f"{records[label][i].steps} in {wall}", class_="quiet")))
        rows.append(tag("tr", tag("th", seed, scope="row"), *cells))
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="columns")
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Every seed")
    return tag("section", tag("h2", "Every seed"), tag("p", found["metric"], class_="quiet note"), scroll)


def _environment(runs: Sequence[Record]) -> Markup:
    """What the runs recorded of where they ran: one value where all agree, else all that occur."""
    names = list(dict.fromkeys(name for run in runs for name in run.environment))
    rows = []
    for name in names:
        if name == "resumed":
            continue
        values = sorted({str(run.environment.get(name, "not recorded")) for run in runs})
        text = f"{values[0]} to {values[-1]}" if name == "date" and len(values) > 1 else "; ".join(values)
        rows.append(tag("tr", tag("th", name, scope="row"), tag("td", text)))
    if resumed := sum("resumed" in run.environment for run in runs):
        told = f"{resumed} of {len(runs)} runs went on elsewhere, or with other versions"
        rows.append(tag("tr", tag("th", "resumed", scope="row"), tag("td", told)))
    return tag("table", tag("tbody", *rows), class_="fields") if rows else tag("p", "Not recorded.", class_="quiet")


def _methods() -> Markup:
    rows = (tag("tr", tag("th", name, scope="row"), tag("td", words)) for name, words in METHODS)
    return tag("table", tag("tbody", *rows), class_="fields methods")
