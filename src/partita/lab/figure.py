"""`partita figure`: a paper's figures, measured over seeds beside the theory's lines, as JSON that its page draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from partita.core import registry
from partita.core.errors import UserError
from partita.core.paper import Figure
from partita.core.words import positional, take, whole
from partita.lab.catalogue import evidence_folder
from partita.lab.checkpoint import write_text
from partita.lab.evidence import provenance

DIGITS = 8  # of every number that is written


def main(argv: list[str]) -> None:
    """Measure the figures of the work that the words name."""
    words = list(argv)
    text, out = take(words, "--seeds"), take(words, "--out")
    seeds = None if text is None else whole("--seeds", text, least=1)
    key = positional(words, "figure", "KEY", 1)[0]
    found: tuple[Figure, ...] = getattr(registry.paper_module(key), "FIGURES", ())
    if not found:
        raise UserError(f"figure {key}: this work has no figures; partita claim {key} measures its statements")
    target = Path(out) if out else evidence_folder() / "figures" / f"{key}.json"
    drawn = [measured(figure, seeds or figure.seeds) for figure in found]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps({"key": key, "figures": drawn, **provenance()}, indent=1) + "\n")
    for figure in drawn:
        print(f"{figure['title']}: {', '.join(figure['lines'])}; {figure['seeds']} seeds")
    print(f"wrote {target}")


def measured(figure: Figure, seeds: int) -> dict[str, Any]:
    """A figure's lines over seeds 0 .. seeds - 1: mean, least and largest at every x, and the theory's lines."""
    rows = [figure.measure(seed) for seed in range(seeds)]
    lines = {}
    for name in rows[0]:
        table = np.array([np.asarray(row[name], float) for row in rows])
        if table.shape != (seeds, len(figure.x)):
            raise UserError(
                f"figure {figure.title!r}: line {name!r} has {table.shape[1:]} values at {len(figure.x)} places"
            )
        lines[name] = {n: _plain(f(0)) for n, f in (("mean", table.mean), ("low", table.min), ("high", table.max))}
    return {
        "title": figure.title, "x_name": figure.x_name, "y_name": figure.y_name, "log": figure.log, "seeds": seeds,
        "x": _plain(figure.x), "lines": lines,
        "theory": {name: _plain([line(x) for x in figure.x]) for name, line in figure.theory.items()},
    }  # fmt: skip


def _plain(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
