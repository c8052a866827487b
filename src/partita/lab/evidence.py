"""Evidence: what was measured of a claim, the verdict, and how anyone can tell where it came from."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from partita.core.paper import Claim, Identity
from partita.lab import environment, statistics
from partita.lab.catalogue import evidence_folder
from partita.lab.changes import plain
from partita.lab.checkpoint import write_text
from partita.lab.claims import ARMS, Trial, finite


def entry(key: str, trial: Trial, tuning: Mapping[str, Any] | None, duration: float) -> dict[str, Any]:
    """The evidence of one statement: values per seed, effect with its 95% interval, verdict, provenance."""
    claim = trial.claim
    found = _identity(claim, trial) if isinstance(claim, Identity) else _paired(claim, trial, tuning)
    return {
        "key": key, "statement": claim.statement, **found, "seeds": len(trial.seeds), "seed_list": list(trial.seeds),
        **provenance(), "duration": round(duration, 1), "processor_time": round(trial.spent(), 1),
        "note": claim.analysis,
    }  # fmt: skip


def _paired(claim: Claim, trial: Trial, tuning: Mapping[str, Any] | None) -> dict[str, Any]:
    rows = []
    for place, (label, changes) in enumerate(trial.settings):
        values = trial.values(place)
        estimate = statistics.paired_effect(values["treatment"], values["control"], claim.kind)
        rows.append({"label": label, "settings": plain(changes), "values": rounded(values), **told(estimate)})
    threshold = threshold_of(claim)
    strongest = rows[-1]
    values = trial.values(len(rows) - 1)
    estimate = statistics.paired_effect(values["treatment"], values["control"], claim.kind)
    dial = None
    if claim.dial is not None:
        dial = {"name": claim.dial[0], "settings": rows, "growth": growth(claim, trial)}
    return {
        "treatment": claim.treatment, "control": claim.control, "task": claim.task, "metric": claim.metric,
        "better": claim.better, "kind": claim.kind, "threshold": threshold,
        "verdict": statistics.verdict(estimate, claim.better, threshold, centre_of(claim)), "rule": rule(claim),
        "effect": strongest["effect"], "ci": strongest["ci"], "values": strongest["values"], "dial": dial,
        "settings": plain(claim.settings), "tuning": tuning, "curves": trial.curves(),
        "fronts": trial.fronts(),
    }  # fmt: skip


def _identity(claim: Identity, trial: Trial) -> dict[str, Any]:
    values = trial.identities()
    slack = claim.tolerance * (abs(claim.expected) if claim.relative else 1.0)
    worst = max(values, key=lambda v: abs(v - claim.expected))
    holds = abs(worst - claim.expected) <= slack
    return {
        "kind": "identity", "expected": claim.expected, "measured": worst, "tolerance": slack,
        "values": {"measured": values}, "verdict": "holds" if holds else "fails",
        "rule": "holds if the measured number is within the tolerance of the expected one for every seed",
    }  # fmt: skip


def growth(claim: Claim, trial: Trial) -> dict[str, Any]:
    """How the effect changes from the weakest to the strongest setting of the dial, paired by seed."""
    first, last = trial.values(0), trial.values(len(trial.settings) - 1)

    def effects(values: Mapping[str, Sequence[float]]) -> list[float]:
        return [t - c for t, c in zip(values["treatment"], values["control"], strict=True)]

    estimate = statistics.paired_effect(effects(last), effects(first), "difference")
    better = "higher" if claim.better == "equal" else claim.better
    return {**told(estimate), "verdict": statistics.verdict(estimate, better, 0.0)}


def threshold_of(claim: Claim) -> float:
    """What the interval must be beyond: as the claim names it, else no effect."""
    if claim.threshold is not None:
        return claim.threshold
    return 1.0 if claim.kind == "ratio" and claim.better != "equal" else 0.0


def centre_of(claim: Claim) -> float:
    """What no effect is, for a claim of equality."""
    return 1.0 if claim.better == "equal" and claim.kind == "ratio" else 0.0


def rule(claim: Claim) -> str:
    """In words, how the verdict follows from the values."""
    what = "mean paired difference (treatment - control)" if claim.kind == "difference" else "ratio of means"
    where = " at the strongest setting of the dial" if claim.dial is not None else ""
    line = threshold_of(claim)
    if claim.better == "equal":
        return f"holds if the 95% interval of the {what}{where} lies within {line:g} of no effect, fails if outside"
    side = "above" if claim.better == "higher" else "below"
    other = "below" if claim.better == "higher" else "above"
    return (
        f"holds if the 95% interval of the {what}{where} lies {side} {line:g}, fails if it lies {other}, else unclear"
    )


def told(estimate: Any) -> dict[str, Any]:
    """An estimate as {"effect", "ci"}; ends that are not finite are null."""
    ends = [finite(estimate.low), finite(estimate.high)]
    return {"effect": finite(estimate.value), "ci": ends}


def rounded(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Values by arm, at more digits than anyone reads, so that a rerun can be compared with them."""
    return {arm: [float(f"{v:.10g}") for v in values[arm]] for arm in ARMS}


def provenance() -> dict[str, Any]:
    """Commit, whether the tree was clean, versions, machine and date."""
    about = environment.describe()
    machine = {k: about.pop(k) for k in ("platform", "cores", "threads", "accelerator") if k in about}
    date = about.pop("date")
    commit, dirty = state()
    return {
        "date": date[:10] if date else datetime.now(UTC).date().isoformat(),
        "commit": commit, "dirty": dirty, "versions": about, "machine": machine,
    }  # fmt: skip


def state() -> tuple[str | None, bool | None]:
    """The commit of the source tree and whether its code differs from it; None outside a repository."""
    source = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=source, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None, None


def code() -> str:
    """Eight hex digits of the source tree's files, so that runs of other code are never taken for those of this."""
    source = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for p in source.rglob("*") if p.suffix in (".py", ".json", ".safetensors")):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def write(key: str, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write `evidence/KEY.json`, whole or not at all."""
    path = evidence_folder() / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(list(entries), indent=1, ensure_ascii=False) + "\n")
    return path
