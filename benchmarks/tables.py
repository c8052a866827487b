"""The results of benchmarks as tables in Markdown: the page `docs/benchmarks.md`."""

from __future__ import annotations

import json
from pathlib import Path


def short(value: float | None) -> str:
    """Three significant digits, or whole thousands."""
    if value is None:
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def tables(folder: Path) -> str:
    """The results in a folder as tables: medians with the least and the largest, then the ratios."""
    out = [
        "# Benchmarks", "",
        "Both sides in one run, each in its own environment, taking turns; medians, with the least and the largest, of",
        "as many runs as each table says. `make bench` repeats them; `benchmarks/README.md` says what each side runs.",
        "Written by `scripts/make_docs.py` from `benchmarks/results`; [the same in pictures](benchmark-charts.md).",
        "[What takes the time](speed.md) says why, where a target is missed and where time grows with size.", "",
        *glance(folder),
    ]  # fmt: skip
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        out += [f"## {path.stem}", ""]
        about = machine(found)
        if "cases" in found:
            out += CASES[found["benchmark"]](found, about)
            continue
        out += [f"{found['date']}, commit {found['commit']}, {found['repeats']} runs a side. Machine: {about}.", ""]
        for measure in dict.fromkeys(side["measure"] for side in found["sides"]):
            sides = [s for s in found["sides"] if s["measure"] == measure]
            fields = [k for k, v in sides[0].items() if isinstance(v, dict) and "median" in v]
            out += ["| side | " + " | ".join(fields) + " |", "|---" * (len(fields) + 1) + "|"]
            for side in sides:
                spans = [side[f] for f in fields]
                cells = [f"{short(s['median'])} ({short(s['min'])} to {short(s['max'])})" for s in spans]
                out.append(f"| `{side['side']}` | " + " | ".join(cells) + " |")
            out.append("")
        out += ["| ours / theirs | of | ratio | target |", "|---|---|---|---|"]
        out += [row(r) for r in found["ratios"]]
        out += ["", "Settings:", ""]
        out += [f"- `{s['side']}`: {s['settings']}" for s in found["sides"]] + [""]
    return "\n".join(out)


def glance(folder: Path) -> list[str]:
    """Every target, and whether it is met, in one table."""
    out = ["## All targets", "", "| benchmark | ours / theirs | of | ratio | target |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        out += [f"| [{path.stem}](#{path.stem}) {row(r)}" for r in found.get("ratios", ()) if r["met"] is not None]
    return [*out, ""]


def row(r: dict) -> str:
    """A ratio, the target for it, and whether that is met, as cells."""
    target = "none" if r["met"] is None else f"{r['target']}: {'met' if r['met'] else 'not met'}"
    pair = f"`{r['ours']}` / " + (f"`{r['theirs']}`" if r["theirs"] else "limit")
    return f"| {pair} | {r['field']} | {short(r['ratio'])} | {target} |"


def machine(found: dict) -> str:
    """The machine of a result in a line."""
    return ", ".join(f"{k} {short(v) if isinstance(v, float) else v}" for k, v in found["machine"].items())


def overhead(found: dict, about: str) -> list[str]:
    """What `partita compare` adds to its runs, as a table."""
    out = [
        f"{found['date']}, commit {found['commit']}. Machine: {about}.", "",
        "Wall-clock of `partita compare` over half the sum of its runs: as they went inside it, and alone.", "",
        "| runs | wall-clock | inside | alone | processor time | target |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case in found["cases"]:
        cells = (short(case[k]) for k in ("wall", "inside", "alone", "work"))
        goal = f"{case['target']}: {'met' if case['met'] else 'not met'}"
        out.append(f"| {' and '.join(case['arms'])}, {case['seeds']} seeds each | {' | '.join(cells)} | {goal} |")
    return [*out, ""]


def shares(found: dict, about: str) -> list[str]:
    """What one piece takes of a training step, as a table."""
    out = [
        f"{found['date']}, commit {found['commit']}, task {found['task']}. Machine: {about}.", "",
        "Processor seconds of a step, those of credit and of hashing in it, and their share beyond the baseline.", "",
        "| recipe | step | credit | hashing | share | target |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case in found["cases"]:
        cells = (short(case[k]) for k in ("processor", "credit", "hashing", "overhead"))
        goal = f"{case['target']}: {'met' if case['met'] else 'not met'}"
        out.append(f"| {case['case']} | {' | '.join(cells)} | {goal} |")
    return [*out, ""]


def anatomy(found: dict, about: str) -> list[str]:
    """Where the time of an update goes, as a table."""
    out = [
        f"{found['date']}, commit {found['commit']}. Machine: {about}.", "",
        "Milliseconds of a call, and its share of the loop; then of what, by torch's profiler, a call is made: matrix",
        "products, other operators, autograd between them, and all else (Python, and in `simulator` MuJoCo). Watched,",
        "a call is slower, the more so the smaller its operators are. `benchmarks/anatomy.py` says how.", "",
        "| case | piece | of the loop | ms | products | operators | autograd | between | ms, watched "
        "| calls of operators | GFLOP/s of products, of the machine |", "|---" * 11 + "|",
    ]  # fmt: skip
    for case in found["cases"]:
        cells = [f"{case['share']:.0%}", short(case["whole"])]
        cells += ["" if case[k] is None else f"{case[k]:.0%}" for k in PARTS]
        cells += [known(case["watched"]), known(case["count"])]
        rates = f"{known(case['gflops'])}, {short(case['matmul_gflops'])}"
        out.append(f"| {case['case']} | {case['piece']} | {' | '.join(cells)} | {rates} |")
    return [*out, ""]


def known(value: float | None) -> str:
    """The number, or nothing where a compiled program does not tell it."""
    return "" if value is None else short(value)


PARTS = ("products", "operators", "autograd", "between")
CASES = {"compare": overhead, "anchors": shares, "anatomy": anatomy}
