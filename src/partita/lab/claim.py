"""`partita claim`: from the words of a command line to evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.core.paper import Claim, Identity
from partita.core.words import positional, switch, take, whole
from partita.lab import evidence, statistics
from partita.lab.catalogue import evidence as held_evidence
from partita.lab.catalogue import evidence_folder
from partita.lab.changes import plain
from partita.lab.checkpoint import write_text
from partita.lab.claims import ARMS, Trial, arm_config, claims, fingerprint, seeds_of, weights
from partita.lab.jobs import Engine, Job, reference
from partita.lab.measures import measured
from partita.lab.tuning import FIRST_SEED, Tuning
from partita.lab.watch import Watch

QUICK, AGAIN = 2, 2  # seeds of --quick and of --check
TUNING_SEEDS = 2


def claim(argv: list[str], engine: Engine) -> None:
    """Measure the claims that the words name."""
    words = list(argv)
    everything, family = switch(words, "--all"), take(words, "--family")
    quick, check, annotate = (switch(words, f"--{name}") for name in ("quick", "check", "annotate"))
    missing, quiet = switch(words, "--missing"), switch(words, "--quiet")
    text, out, only = (take(words, f"--{name}") for name in ("seeds", "out", "statement"))
    number = whole("--statement", only, 0, least=1) if only is not None else None
    count = None if text is None else whole("--seeds", text, least=2)
    if sum((quick, check, annotate)) > 1:
        raise UserError("claim: give one of --quick, --check, --annotate")
    if check and count is not None:
        raise UserError(f"claim --check: reruns {AGAIN} of the committed seeds; leave out --seeds")
    keys = chosen(family, missing) if everything or family else positional(words, "claim", "KEY, or --all", 1)
    root = Path(out) if out else Path("runs") / "claims"
    for key in keys:
        if annotate:
            print(f"{key}: wrote {rewritten(key)}")
        elif check:
            again(key, engine, root, quiet)
        else:
            measure(key, QUICK if quick else count, quick, engine, root, quiet, number)


def chosen(family: str | None, missing: bool) -> list[str]:
    """All papers that state a claim (of a family), or those of them that have no evidence yet."""
    from partita.lab.catalogue import rows

    found = [row["key"] for row in rows(family) if row["claim"] is not None]
    found = [key for key in found if not (missing and held_evidence(key))]
    if not found:
        raise UserError("claim --all: no work here states a claim" + (" without evidence" if missing else ""))
    return found


def measure(
    key: str, count: int | None, quick: bool, engine: Engine, root: Path, quiet: bool, only: int | None = None
) -> None:
    """Run every arm of every claim of a paper (`only`: of its N-th), and write the evidence, statement by statement.

    A quick look writes nothing. Entries that are held of statements not measured now stay.
    """
    stated = claims(key)
    if only is not None and only > len(stated):
        raise UserError(f"--statement {only}: {key} states {len(stated)}")
    entries = {e["statement"]: e for e in held_evidence(key)}
    for number, statement in enumerate(stated, 1):
        if only not in (None, number):
            continue
        began = time.monotonic()
        tuning = None if isinstance(statement, Identity) else tuned(key, statement, engine, root, quiet)
        found = {} if tuning is None else {arm: tuning[arm] for arm in ARMS}
        trial = Trial(statement, Path(), seeds_of(statement, count), found)
        if quick and isinstance(statement, Claim) and statement.dial is not None:
            name, settings = statement.dial
            trial = replace(trial, claim=replace(statement, dial=(name, (settings[0], settings[-1]))))
        trial = replace(trial, folder=place(root, key, fingerprint(trial)))
        trial.open()
        with Watch(f"claim {key}", quiet) as watch:
            engine.run(trial.jobs(), watch)
        found_entry = evidence.entry(key, trial, tuning, time.monotonic() - began)
        weights(trial.jobs())
        entries[statement.statement] = found_entry
        print("\n".join(lines(found_entry)), flush=True)
        if not quick:
            kept = [entries[s.statement] for s in stated if s.statement in entries]
            print(f"{key}: wrote {evidence.write(key, kept)}", flush=True)
    if quick:
        print(f"{key}: a quick look with {QUICK} seeds; no verdict was written")


def place(root: Path, key: str, mark: str) -> Path:
    """Where the jobs of a statement live: one folder for each state of the code and each set of jobs.

    Statements that ask for the same runs share them.
    """
    return root / key / f"{evidence.code()}-{mark}"


def tuned(key: str, claim: Claim, engine: Engine, root: Path, quiet: bool) -> dict[str, Any] | None:
    """What tuning found for each arm of a claim, from the record beside the evidence, or by tuning now.

    Both arms get the same number of trials, on the strongest setting of the dial, on seeds that are not reported.
    """
    spaces = {arm: {**claim.search, **getattr(claim, f"search_{arm}")} for arm in ARMS}
    if not any(spaces.values()):
        return None
    sizes = {arm: _size(search) for arm, search in spaces.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"claim {key}: {sizes['treatment']} trials for the treatment and {sizes['control']} for the control; "
            "give both searches the same size"
        )
    path = evidence_folder() / "tuning" / f"{key}.json"
    asked = {arm: plain({n: list(v) for n, v in search.items()}) for arm, search in spaces.items()}
    asked |= {"settings": plain({**claim.settings, **_strongest(claim)})}
    held = _records(path)
    for record in held:
        if record["statement"] == claim.statement and record["search"] == json.loads(json.dumps(asked)):
            return record
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + TUNING_SEEDS))
    by = claim.tuned_by or ("value" if claim.experiment is not None else "evaluation")
    record = {"statement": claim.statement, "metric": by, "search": asked, "seeds": list(seeds)}
    for arm in ARMS:
        mark = fingerprint(Trial(claim, Path(), seeds))
        own = claim.experiment is not None and claim.tuned_by is None and claim.better != "equal"
        better = claim.better if own else "higher"
        tuning = Tuning(
            place(root, key, mark) / "tuning" / arm, _job(claim, arm), _value(claim), spaces[arm],
            sizes[arm], seeds, better,
        )  # fmt: skip
        with Watch(f"tune {key} {arm}", quiet) as watch:
            found = tuning.run(engine, watch)
        record |= {arm: found["best"], f"{arm}_trials": found["results"], "trials": found["trials"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [r for r in held if r["statement"] != claim.statement]
    write_text(path, json.dumps([*kept, record], indent=1) + "\n")
    return record


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; remove it to tune again") from error
    return [r for r in found if isinstance(r, dict) and {"statement", "search", *ARMS} <= set(r)]


def _size(search: Mapping[str, Any]) -> int:
    size = 1
    for values in search.values():
        size *= len(values)
    return size


def _strongest(claim: Claim) -> Mapping[str, Any]:
    return claim.dial[1][-1][1] if claim.dial is not None else {}


def _job(claim: Claim, arm: str) -> Any:
    def make(folder: Path, settings: Mapping[str, Any], seed: int) -> Job:
        asked = {**_strongest(claim), **settings}
        if claim.experiment is not None:
            arguments = {"arm": arm, "seed": seed, **plain({**claim.settings, **asked})}
            return Job(folder, call=reference(claim.experiment), arguments=arguments)
        config = arm_config(claim, arm, asked)
        config = replace(config, settings=replace(config.settings, seed=seed, threads=config.settings.threads or 1))
        measure = None if claim.measure is None else reference(claim.measure)
        return Job(folder, config.to_json(), measure=measure, threads=config.settings.threads or 1)

    return make


def _value(claim: Claim) -> Any:
    def read(job: Job) -> float:
        result = job.result() or {}
        if claim.experiment is not None:
            return float(result[claim.tuned_by or "value"])
        if claim.tuned_by is not None:
            return measured(claim.tuned_by, job.folder, result)
        return float(result["after"]["mean"])

    return read


def again(key: str, engine: Engine, root: Path, quiet: bool) -> None:
    """Rerun two of the committed seeds and say whether the evidence is consistent; raises UserError if it is not."""
    held = {entry["statement"]: entry for entry in held_evidence(key)}
    if not held:
        raise UserError(f"claim {key} --check: no evidence is held; measure it with: partita claim {key}")
    wrong = 0
    for statement in claims(key):
        entry = held.get(statement.statement)
        if entry is None:
            print(f"{key}: no evidence yet: {statement.statement}")
            continue
        seeds = tuple(entry["seed_list"][:AGAIN])
        found = {arm: (entry.get("tuning") or {}).get(arm, {}) for arm in ARMS}
        trial = Trial(statement, Path(), seeds, found)
        if isinstance(statement, Claim) and statement.dial is not None:
            name, settings = statement.dial
            trial = replace(trial, claim=replace(statement, dial=(name, settings[-1:])))
        mark = f"check-{fingerprint(trial)}"
        trial = replace(trial, folder=place(root, key, mark))
        with Watch(f"check {key}", quiet) as watch:
            engine.run(trial.jobs(), watch)
        identity = isinstance(statement, Identity)
        values = {"measured": trial.identities()} if identity else trial.values(len(trial.settings) - 1)
        for arm, now in values.items():
            committed = entry["values"][arm]
            same = all(abs(a - b) <= 1e-9 * max(1.0, abs(b)) for a, b in zip(now, committed[:AGAIN], strict=True))
            fits, low, high = statistics.consistent(committed, now, tolerance=slack(statement, trial, entry))
            mean = sum(now) / len(now)
            told = "the same numbers" if same else f"mean {mean:.4g}, expected within [{low:.4g}, {high:.4g}]"
            print(f"{key}: {arm}, seeds {', '.join(map(str, seeds))}: {told}: {'ok' if same or fits else 'NOT ok'}")
            wrong += not (same or fits)
    if wrong:
        raise UserError(f"claim {key} --check: {wrong} of the arms are not consistent with the committed evidence")
    print(f"{key}: the committed evidence is consistent")


def slack(statement: Claim | Identity, trial: Trial, entry: Mapping[str, Any]) -> float:
    """The least difference that means anything: an identity's tolerance, or two problems of an evaluation."""
    if isinstance(statement, Identity):
        return float(entry["tolerance"])
    if statement.experiment is not None or statement.metric != "success":
        return 0.0
    return 2.0 / max(1, trial.config("control", {}).settings.eval_size)


def rewritten(key: str) -> Path:
    """The evidence with the analysis that the paper's file holds now; numbers stay as they were."""
    notes = {c.statement: c.analysis for c in claims(key)}
    held = held_evidence(key)
    if not held:
        raise UserError(f"claim {key} --annotate: no evidence is held; measure it with: partita claim {key}")
    return evidence.write(key, [{**e, "note": notes.get(e["statement"], e.get("note", ""))} for e in held])


def lines(entry: Mapping[str, Any]) -> list[str]:
    """An entry for a terminal."""
    out = [f"{entry['key']}: {entry['statement']}"]
    if entry["kind"] == "identity":
        out.append(
            f"  expected {entry['expected']:.6g}, measured {entry['measured']:.6g} (+- {entry['tolerance']:.2g})"
        )
    else:
        dial = entry["dial"]
        for row in dial["settings"] if dial else [entry]:
            label = f"{dial['name']} {row['label']}: " if dial else ""
            means = {arm: sum(v) / len(v) for arm, v in row["values"].items()}
            out.append(
                f"  {label}{entry['treatment']} {means['treatment']:.4g}, {entry['control']} {means['control']:.4g}; "
                f"effect {row['effect']:.4g} [{_end(row['ci'][0])}, {_end(row['ci'][1])}]"
            )
        if dial:
            grown = dial["growth"]
            out.append(f"  growth along the dial: {grown['effect']:.4g}, {grown['verdict']}")
    out.append(f"  verdict: {entry['verdict']} ({entry['rule']})")
    if entry["dirty"]:
        out.append("  the code differs from the commit: the evidence is marked dirty")
    return out


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
