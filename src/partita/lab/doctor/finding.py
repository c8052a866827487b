"""What a rule can say of a run: a finding, that all is well, or that it could not tell."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from partita.core.part import snake_case
from partita.lab.doctor.case import Case

Severity = Literal["warning", "problem"]
Remedy = tuple[str, str]  # a flag, and why it helps


@dataclass(frozen=True)
class Finding:
    """Something that goes wrong: since which step, the numbers that show it, and what addresses it."""

    rule: str
    severity: Severity
    since_step: int
    evidence: str
    explanation: str
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True)
class Passed:
    """A rule that was checked and found nothing, with its numbers."""

    rule: str
    evidence: str


@dataclass(frozen=True)
class Skipped:
    """A rule that could not be checked, and what was missing."""

    rule: str
    reason: str


Verdict = Finding | Passed | Skipped


class Rule:
    """A thing that can go wrong; its thresholds are its fields. `explanation` says in a sentence what it means."""

    explanation: ClassVar[str] = ""

    @classmethod
    def name(cls) -> str:
        """The class name in snake case."""
        return snake_case(cls.__name__)

    def thresholds(self) -> dict[str, float]:
        """The thresholds by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def __call__(self, case: Case) -> Verdict:
        raise NotImplementedError

    def found(self, severity: Severity, since: int, evidence: str, explanation: str = "") -> Finding:
        """A finding of this rule; what addresses it is looked up later."""
        return Finding(self.name(), severity, since, evidence, explanation or self.explanation)

    def passed(self, evidence: str) -> Passed:
        """Nothing found."""
        return Passed(self.name(), evidence)

    def skipped(self, reason: str) -> Skipped:
        """Could not be checked."""
        return Skipped(self.name(), reason)

    def missing(self, case: Case, metric: str, why: str, least: int = 1) -> Skipped:
        """Skipped since a metric is not there, or not for `least` steps."""
        held = len(case.series(metric))
        if held:
            return self.skipped(f"`{metric}` is there for {held} steps, and {least} are needed")
        return self.skipped(f"no `{metric}` in the metrics: {why}")
