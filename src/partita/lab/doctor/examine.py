"""All rules on a run: what was found, what passed, and what could not be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from partita.core.errors import UserError
from partita.lab.doctor import drift, outcome, signal
from partita.lab.doctor.case import Case, open_case
from partita.lab.doctor.finding import Finding, Passed, Rule, Skipped
from partita.lab.doctor.remedies import remedies

RULES: tuple[Rule, ...] = (
    outcome.NoLearning(), outcome.RewardDivergence(), signal.EntropyCollapse(), drift.KlRunaway(),
    drift.ReferenceRunaway(), signal.DegenerateGroups(), signal.DeadGradients(), signal.GradientSpikes(),
    drift.ClipSaturation(), drift.StaleData(), signal.UselessCritic(), outcome.LengthExplosion(),
    outcome.SolvedBefore(),
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """A run and what the rules say of it; findings with the worst first, then by the step at which they began."""

    case: Case
    findings: tuple[Finding, ...]
    passed: tuple[Passed, ...]
    skipped: tuple[Skipped, ...]

    @property
    def healthy(self) -> bool:
        """Whether no problem was found (warnings may have been)."""
        return all(f.severity != "problem" for f in self.findings)


def examine(case: Case, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Check every rule on a run."""
    verdicts = [rule(case) for rule in rules]
    found = [replace(v, remedies=remedies(v.rule, case)) for v in verdicts if isinstance(v, Finding)]
    found.sort(key=lambda f: (f.severity != "problem", f.since_step))
    return Diagnosis(
        case, tuple(found), tuple(v for v in verdicts if isinstance(v, Passed)),
        tuple(v for v in verdicts if isinstance(v, Skipped)),
    )  # fmt: skip


def diagnose(folder: str | Path) -> list[Finding]:
    """What is going wrong in the run in `folder`, finished or not; empty for a healthy run."""
    return list(examine(open_case(Path(folder))).findings)


def diagnoses(folder: Path) -> list[Diagnosis]:
    """Of the run in `folder`, or of all the runs below it (a comparison's folder)."""
    if not folder.is_dir():
        raise UserError(f"doctor {folder}: no such folder; give the folder of a run")
    if (folder / "config.json").exists():
        return [examine(open_case(folder))]
    below = sorted(p.parent for p in folder.rglob("metrics.jsonl") if (p.parent / "config.json").is_file())
    if not below:
        raise UserError(f"doctor {folder}: not a run (it has no config.json), and no runs below it")
    return [examine(open_case(run, str(run.relative_to(folder)))) for run in below]
