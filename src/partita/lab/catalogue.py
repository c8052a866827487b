"""What the library holds: rows for `partita papers`, pages for `partita show`, differences for `partita diff`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from partita.core import registry
from partita.core.errors import UserError, nearest


def evidence_folder() -> Path:
    """Where evidence is read from: `evidence/` here, or beside the source tree."""
    here = Path.cwd() / "evidence"
    return here if here.is_dir() else Path(__file__).resolve().parents[3] / "evidence"


def evidence(key: str) -> list[dict[str, Any]]:
    """The committed evidence of a paper's claims; empty when there is none."""
    path = evidence_folder() / f"{key}.json"
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    return data if isinstance(data, list) else [data]


def rows(family: str | None = None) -> list[dict[str, Any]]:
    """Every paper held, as `partita papers --json` prints it; imports none of them."""
    papers = registry.index()["papers"]
    families = {entry["family"] for entry in papers.values()}
    if family is not None and family not in families:
        raise UserError(f"--family {family}: no such family; {nearest(family, families)}")
    out = []
    for key, entry in papers.items():
        if family is not None and entry["family"] != family:
            continue
        row = {"key": key} | {k: entry[k] for k in ("title", "arxiv", "kind", "family", "loop", "recipes", "changes")}
        claim = entry["claim"]
        if claim is not None:
            found = [e for e in evidence(key) if e.get("statement") == claim["statement"]]
            measured = found[0] if found else {}
            claim = {k: claim[k] for k in ("treatment", "control", "task", "metric")} | {
                k: measured.get(k) for k in ("verdict", "effect", "ci", "seeds", "date")
            }
        out.append({**row, "claim": claim})
    return out


def show(key: str) -> Iterator[str]:
    """The page of a paper (or of the paper behind a recipe), line by line."""
    from partita.core.part import equations, summary

    index = registry.index()
    if key not in index["papers"] and key in index["recipes"]:
        key = index["recipes"][key]["paper"]
    module = registry.paper_module(key)
    paper, entry = module.PAPER, index["papers"][key]
    yield f"{paper.title}"
    source = " · ".join(
        str(x) for x in (paper.authors, paper.year, f"arXiv:{paper.arxiv}" if paper.arxiv else paper.url) if x
    )
    yield f"{key} · {paper.kind} · {entry['family']} · loop {paper.loop}" + (f" · {source}" if source else "")
    yield ""
    body = (module.__doc__ or "").strip().split("\n\n", 1)
    yield from (body[1] if len(body) > 1 else body[0]).splitlines()
    yield ""
    yield f"changes   {', '.join(paper.changes) or 'nothing'}"
    for slot, names in index["parts"].items():
        for name, part in names.items():
            if part["paper"] == key:
                cls = registry.load(part["target"])
                yield f"part      --{slot} {name}: {summary(cls)}"
                yield from (f"              {line}" for line in equations(cls).splitlines())
    for name, recipe in getattr(module, "RECIPES", {}).items():
        filled = ", ".join(
            f"{s}={describe(getattr(recipe, s))}" for s in recipe.slots if getattr(recipe, s) is not None
        )
        yield f"recipe    {name}: {filled}"
        if (credit := getattr(recipe, "credit", None)) is not None:
            yield f"              promises of its advantages: {credit.promises}"
    if entry["claim"] is None:
        yield "claim     none stated here"
    else:
        claim = entry["claim"]
        arms = "" if claim["treatment"] is None else "{treatment} against {control} on {task}".format(**claim)
        yield f"claim     {claim['statement']}" + (f" ({arms})" if arms else "")
        found = evidence(key)
        for item in found:
            yield f"evidence  {item['verdict']}: {item['statement']}; {found_in(item)}, {item.get('date')}"
        if not found:
            yield "evidence  none yet"


def found_in(item: dict[str, Any]) -> str:
    """The number of an entry of evidence: an effect with its interval, or what was measured and what was expected."""
    if item.get("effect") is None:
        return f"measured {item.get('measured'):.6g}, expected {item.get('expected'):.6g}"
    low, high = item["ci"]
    return f"effect {item['effect']:.4g} [{low:.4g}, {high:.4g}]"


def describe(value: Any) -> str:
    """A part with its settings, in one line."""
    if isinstance(value, tuple):
        return "(" + ", ".join(describe(v) for v in value) + ")"
    if hasattr(value, "settings"):
        inside = ", ".join(f"{k}={v}" for k, v in value.settings().items())
        return f"{value.part_name()}({inside})"
    return str(value)


def diff(a: str, b: str) -> Iterator[str]:
    """Slot by slot, where two recipes differ, with the equations of the parts that do."""
    from partita.core.recipe import differences

    left, right = _recipe(a), _recipe(b)
    found = differences(left, right)
    if not found:
        yield f"{a} and {b} are the same recipe"
        return
    names = len(found)
    yield f"{a} and {b} differ in {names} field{'s' if names > 1 else ''} of {len(left.slots) + len(left.numbers())}"
    for name, x, y in found:
        yield ""
        yield name
        for label, value in ((a, x), (b, y)):
            yield f"  {label:12} {describe(value)}"
            for part in value if isinstance(value, tuple) else (value,):
                yield from _equations(part)


def _equations(part: Any) -> Iterator[str]:
    from partita.core.part import Part, equations

    if isinstance(part, Part):
        yield from (f"  {'':12}     {line}" for line in equations(type(part)).splitlines())


def _recipe(name: str) -> Any:
    index = registry.index()
    if name not in index["recipes"] and name in index["papers"]:
        mine = index["papers"][name]["recipes"]
        if not mine:
            raise UserError(f"diff {name}: the paper has no recipe (its kind is {index['papers'][name]['kind']})")
        name = mine[0]
    return registry.recipe(name)
