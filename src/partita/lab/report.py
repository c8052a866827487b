"""Reports: one self-contained HTML page of one run or several. Every text passes through `tag`, which escapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.lab.checkpoint import write_text
from partita.lab.markup import Markup, join, script, tag
from partita.lab.records import Record, Section, changed, read_all, sections, statement, title

ASSETS = Path(__file__).resolve().parents[1] / "assets"
LONGEST = 4000  # characters of a prompt or response that are shown
# The page may run its own scripts and styles and reach nothing else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def write(folders: Sequence[Path], target: Path) -> Path:
    """Write the report of the runs in `folders` to `target`, whole or not at all; UserError for what is no run."""
    if not folders:
        raise UserError("report: name one or more run folders")
    text = page(sections(read_all(folders)))
    if target.is_dir():
        raise UserError(f"--out {target}: is a folder; name a file, {target / 'report.html'} for instance")
    try:
        write_text(target, text)
    except OSError as error:
        raise UserError(f"--out {target}: cannot be written: {error.strerror}; choose another place") from error
    return target


def page(sections: Sequence[Section]) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    runs = [run for section in sections for run in section.runs]
    name = f"{title(runs[0])} on {runs[0].task}" if len(runs) == 1 else f"{len(runs)} runs"
    body = [tag("header", tag("h1", name), tag("p", _subtitle(sections), class_="quiet"))]
    body += [_section(section, i, len(sections) > 1) for i, section in enumerate(sections)]
    body.append(tag("section", tag("h2", "Environment"), _environment(runs)))
    charts = [[{k: v for k, v in c.items() if k != "note"} for c in section.charts] for section in sections]
    names = [[run.name for run in section.runs] for section in sections]
    head = [
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", f"Partita: {name}"),
        Markup(f"<style>{(ASSETS / 'report.css').read_text()}</style>"),
    ]
    foot = [
        script({"charts": charts, "names": names}, "data"),
        Markup(f"<script>{get_plotlyjs()}</script>"),
        Markup(f"<script>{(ASSETS / 'report.js').read_text()}</script>"),
    ]
    whole = tag("html", tag("head", *head), tag("body", tag("main", *body), *foot), lang="en")
    return "<!doctype html>\n" + whole.encode("utf-8", "replace").decode() + "\n"


def _subtitle(sections: Sequence[Section]) -> str:
    runs = [run for section in sections for run in section.runs]
    if len(runs) == 1:
        return f"Run {runs[0].name}, {_state(runs[0])}."
    tasks = [section.runs[0].task for section in sections]
    return f"On {', '.join(dict.fromkeys(tasks))}. Evaluations are on fresh problems, with 95% intervals."


def _section(section: Section, index: int, several: bool) -> Markup:
    runs = section.runs
    out = [
        tag("h2", runs[0].task if several else "Result"),
        tag("p", section.task, class_="quiet code"),
    ]
    out.append(_headline(runs))
    if len(runs) > 1:
        out.append(differing(runs))
    out.append(tag("h3", "Curves"))
    out.append(_controls(runs, index))
    if any(len(s["y"]) >= 40 and "up" not in s for c in section.charts for s in c["series"]):
        note = "Bold: running mean over a twentieth of the run. Faint: as measured."
        out.append(tag("p", note, class_="quiet note"))
    out.append(
        tag(
            "div",
            *(
                tag(
                    "figure",
                    tag("figcaption", tag("strong", c["title"]), " ", tag("span", c["note"], class_="quiet")),
                    tag("div", id=f"chart-{index}-{c['key']}", class_="chart"),
                )
                for c in section.charts
            ),
            class_="charts",
        )
    )
    out += [found for i, run in enumerate(runs) if (found := _samples(run, i, len(runs) > 1)) is not None]
    out.append(tag("h3", "Configuration"))
    out += [configuration(run, i, len(runs) == 1) for i, run in enumerate(runs)]
    return tag("section", *out)


def swatch(index: int) -> Markup:
    """The colour of a run or an arm."""
    return tag("i", class_=f"swatch c{index % 8}", aria_hidden="true")


def _headline(runs: Sequence[Record]) -> Markup:
    names = ("Run", "Recipe", "Before", "After", "Steps", "Wall-clock")
    rows = []
    for i, run in enumerate(runs):
        cells = (
            join((swatch(i), run.name)),
            title(run),
            _measured(run.before, run),
            _measured(run.after, run),
            join(
                (
                    run.steps,
                    None if run.finished else tag("span", f" of {_total(run)}, not finished", class_="warn"),
                )
            ),
            duration(run.metrics[-1].get("seconds")),
        )
        rows.append(tag("tr", *(tag("td", tag("div", c), data_label=n) for n, c in zip(names, cells, strict=True))))
    head = tag("thead", tag("tr", *(tag("th", n) for n in names)))
    return tag("table", head, tag("tbody", *rows), class_="stack headline")


def _total(run: Record) -> Any:
    return run.raw.get("steps", "?")


def _state(run: Record) -> str:
    return f"finished after {run.steps} steps" if run.finished else f"not finished: {run.steps} of {_total(run)} steps"


def _measured(found: dict[str, Any] | None, run: Record) -> Markup:
    """An evaluation: mean, interval, what was measured, and at which step when that is neither end of training."""
    if found is None or not all(isinstance(found.get(k), int | float) for k in ("mean", "low", "high")):
        return tag("span", "not measured", class_="quiet")
    about = f"{found.get('metric', '')}, {found.get('count', '?')} {'episodes' if _control(run) else 'problems'}"
    if found["step"] not in (0, run.steps) or (found["step"] and not run.finished):
        about += f", at step {found['step']}"
    return join((
        tag("b", number(found["mean"])), f" [{number(found['low'])}, {number(found['high'])}] ",
        tag("small", about, class_="quiet"),
    ))  # fmt: skip


def _control(run: Record) -> bool:
    return run.config is not None and run.config.task.domain == "control"


def number(value: float) -> str:
    """Three decimals for shares, fewer for large numbers."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 10_000 else f"{value:.4g}"


def duration(seconds: Any) -> str:
    """Seconds as people say them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if not isinstance(seconds, int | float) or not seconds >= 0 or seconds == float("inf"):
        return "unknown"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def differing(runs: Sequence[Record]) -> Markup:
    """What differs, in sentences, then field by field with the equations."""
    first, others = runs[0], runs[1:]
    found = {name for run in others for name in changed(first, run)}
    order = dict.fromkeys(row.field for run in runs for row in run.rows())
    names = [name for name in order if name in found]
    out = [tag("h3", "What differs")]
    out += [tag("p", statement(first, run)) for run in others]
    if not names:
        return join(out)
    tables = [{row.field: row for row in run.rows()} for run in runs]
    rows = []
    for name in names:
        base = tables[0].get(name)
        cells = [tag("th", name, scope="row")]
        for i, (run, table) in enumerate(zip(runs, tables, strict=True)):
            row = table.get(name)
            differs = i > 0 and (row is None or base is None or row.value != base.value)
            text = [tag("span", "absent", class_="quiet") if row is None else tag("span", row.value, class_="code")]
            if row is not None and row.equations:
                text.append(tag("pre", row.equations))
            cells.append(tag("td", tag("div", *text), class_="differs" if differs else None, data_label=run.name))
        rows.append(tag("tr", *cells))
    heads = [tag("th", "Field"), *(tag("th", swatch(i), run.name) for i, run in enumerate(runs))]
    table_ = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="stack")
    return join([*out, tag("div", table_, class_="scroll")])


def _controls(runs: Sequence[Record], index: int) -> Markup:
    """Buttons that show and hide runs, and the choice of the horizontal axis."""
    toggles = (
        tag("button", swatch(i), run.name, type="button", data_run=i, aria_pressed="true")
        for i, run in enumerate(runs)
        if len(runs) > 1
    )
    axes = tag(
        "span",
        tag("button", "by steps", type="button", data_axis="x", aria_pressed="true"),
        tag("button", "by wall-clock", type="button", data_axis="t", aria_pressed="false"),
        class_="axes",
    )
    return tag("div", *toggles, axes, class_="controls", data_section=index)


def _samples(run: Record, index: int, several: bool) -> Markup | None:
    """Responses before and after training to the same problems, side by side."""
    before, after = (_held(e) for e in (run.before, run.after))
    if not before and not after:
        return None
    heads = "Samples" + (f" of {run.name}" if several else "")
    last = run.after["step"] if run.after is not None else 0
    rows = []
    paired = len(before) == len(after) and all(
        a.get("prompt") == b.get("prompt") for a, b in zip(before, after, strict=True)
    )
    pairs: list[tuple[Any, Any]] = list(zip(before, after, strict=True)) if paired else []
    if not paired:
        pairs = [(b, None) for b in before] + [(None, a) for a in after]
    for old, new in pairs:
        prompt = tag("pre", _cut((old or new).get("prompt", "")), class_="prompt")
        shown = (("before training", old), (f"after {last} steps", new))
        rows.append(tag("article", prompt, tag("div", *(_response(n, s) for n, s in shown if s), class_="pair")))
    return tag(
        "details",
        tag(
            "summary",
            swatch(index) if several else None,
            heads,
            tag("small", f" {len(pairs)}", class_="quiet"),
        ),
        *rows,
        class_="samples",
        open="" if index == 0 else None,
    )


def _held(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    held = (found or {}).get("samples")
    return [s for s in held if isinstance(s, dict)] if isinstance(held, list) else []


def _response(name: str, sample: dict[str, Any]) -> Markup:
    score = sample.get("score")
    good = isinstance(score, int | float) and score >= 1
    about = [
        tag(
            "span",
            f"{score:g}" if isinstance(score, int | float) else score,
            class_="good" if good else "bad",
        )
    ]
    if sample.get("why"):
        about.append(join((" ", sample["why"])))
    response = sample.get("response", "")
    text = tag("pre", _cut(response)) if response else tag("p", "(empty)", class_="quiet")
    return tag("div", tag("h4", name), text, tag("p", "score ", *about, class_="quiet"))


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"


def configuration(run: Record, index: int, open_: bool) -> Markup:
    """All fields of a run with the equations of its parts, folded away unless `open_`."""
    rows = []
    for row in run.rows():
        more = tag("pre", row.equations) if row.equations else None
        value = join((tag("span", row.value, class_="code"), more))
        rows.append(tag("tr", tag("th", row.field, scope="row"), tag("td", value)))
    notes = None
    if run.config is None:
        notes = tag(
            "p",
            "Some parts of this run could not be loaded here; their equations are missing.",
            class_="warn",
        )
    name = join((swatch(index), run.name, tag("small", f" {title(run)}, loop {run.raw.get('loop', 'on_policy')}")))
    table = tag("table", tag("tbody", *rows), class_="fields")
    return tag("details", tag("summary", name), notes, table, open="" if open_ else None)


def _environment(runs: Sequence[Record]) -> Markup:
    """What the runs recorded of where they ran; one column where they all ran on the same."""
    tables = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in run.environment.items()} for run in runs]
    if not any(tables):
        return tag("p", "Not recorded.", class_="quiet")
    names = list(dict.fromkeys(name for table in tables for name in table))
    rows = []
    for name in names:
        values = [str(table.get(name, "not recorded")) for table in tables]
        if len(set(values)) == 1:
            text = join((values[0],))
        else:
            lines = (
                tag("div", tag("small", run.name, class_="quiet"), " ", v) for run, v in zip(runs, values, strict=True)
            )
            text = join(lines)
        rows.append(tag("tr", tag("th", name, scope="row"), tag("td", text)))
    return tag("table", tag("tbody", *rows), class_="fields")
