"""A diagnosis in lines for people, and as JSON for scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from partita.lab.doctor.examine import RULES, Diagnosis

WIDTH = 110


def render(diagnosis: Diagnosis) -> list[str]:
    """The findings with numbers and remedies, then the rules that passed and those that could not be checked."""
    case = diagnosis.case
    task = case.setting("task.id") or case.setting("task.part")
    total = case.setting("steps")
    state = f"{case.steps} steps" if case.finished or total is None else f"{case.steps} of {total} steps, not finished"
    lines = [f"{case.name}: {case.raw.get('recipe')} on {task}, {state}"]
    for finding in diagnosis.findings:
        lines += ["", f"{finding.severity}: {finding.rule}, since step {finding.since_step}"]
        lines += [*_wrapped(finding.explanation), *_wrapped(finding.evidence)]
        width = max((len(flag) for flag, _ in finding.remedies), default=0)
        for i, (flag, why) in enumerate(finding.remedies):
            lines.append(f"  {'try' if i == 0 else '   '} {flag:{width}}  {why}")
    if not diagnosis.findings:
        lines += ["", f"nothing wrong found in {case.steps} steps"]
    if diagnosis.passed:
        lines += ["", "checked, nothing found:"]
        lines += [line for p in diagnosis.passed for line in _item(p.rule, p.evidence)]
    if diagnosis.skipped:
        lines += ["", "could not be checked:"]
        lines += [line for s in diagnosis.skipped for line in _item(s.rule, s.reason)]
    return lines


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """As plain values: run, steps, healthy, findings, passed, skipped, and the thresholds of every rule."""
    return {
        "run": diagnosis.case.name,
        "steps": diagnosis.case.steps,
        "finished": diagnosis.case.finished,
        "healthy": diagnosis.healthy,
        "findings": [
            {**asdict(f), "remedies": [{"flag": flag, "why": why} for flag, why in f.remedies]}
            for f in diagnosis.findings
        ],
        "passed": [asdict(p) for p in diagnosis.passed],
        "skipped": [asdict(s) for s in diagnosis.skipped],
        "thresholds": {rule.name(): rule.thresholds() for rule in RULES},
    }


def _item(rule: str, said: str) -> Iterator[str]:
    width = max(len(r.name()) for r in RULES)
    body = textwrap.wrap(said, WIDTH - width - 4) or [""]
    for i, line in enumerate(body):
        yield f"  {rule if i == 0 else '':{width}}  {line}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
