"""`partita doctor`: what goes wrong in a run, since when, and which parts address it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from partita.core.words import positional, switch
from partita.lab.doctor.examine import RULES, Diagnosis, diagnose, diagnoses, examine
from partita.lab.doctor.finding import Finding
from partita.lab.doctor.render import render, to_json

__all__ = ["RULES", "Diagnosis", "Finding", "diagnose", "diagnoses", "examine", "main", "render", "to_json"]


def main(argv: list[str]) -> None:
    """partita doctor DIR [--json]: what goes wrong in a run, with the numbers and the parts that address it.

    DIR         a run's folder, finished or not; or a folder of runs (a comparison), which are examined one by one
    --json      for scripts: {"healthy": bool, "runs": [{"run", "steps", "findings", "passed", "skipped", ...}]}

    The flags it proposes go after `partita train --config DIR/config.json`. Exit code 1 where a problem was found,
    0 otherwise (warnings included), 2 for a folder that is no run.
    """
    words = list(argv)
    as_json = switch(words, "--json")
    found = diagnoses(Path(positional(words, "doctor", "DIR", 1)[0]))
    if as_json:
        runs = [to_json(d) for d in found]
        print(json.dumps({"healthy": all(d.healthy for d in found), "runs": runs}, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(render(d)) for d in found))
    if not all(d.healthy for d in found):
        sys.exit(1)
