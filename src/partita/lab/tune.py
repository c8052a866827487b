"""`partita tune`: from the words of a command line to tuned settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from partita.core import registry
from partita.core.errors import UserError
from partita.core.words import switch, take, whole
from partita.lab.changes import changed
from partita.lab.checkpoint import write_text
from partita.lab.comparison import default_metric
from partita.lab.flags import parse
from partita.lab.jobs import Engine, Job
from partita.lab.measures import check, measured
from partita.lab.tuning import FIRST_SEED, Range, Tuning, space
from partita.lab.watch import Watch

SEEDS = 2


def tune(argv: list[str], engine: Engine) -> None:
    """Tune the recipe that the words name on tuning seeds, and print the best settings as flags."""
    words = list(argv)
    quiet = switch(words, "--quiet")
    options = {name: take(words, f"--{name}") for name in ("trials", "seeds", "metric", "better", "out")}
    searched = []
    while (word := take(words, "--search")) is not None:
        searched.append(word)
    if not words or words[0].startswith("-"):
        raise UserError("tune: name a recipe, for example: partita tune grpo --task countdown --trials 12")
    name = words[0]
    registry.recipe(name)
    config, _ = parse(words)
    metric = options["metric"] or default_metric(config)
    check(metric)
    better = options["better"] or "higher"
    if better not in ("higher", "lower"):
        raise UserError(f"--better: expected higher or lower, got {better!r}")

    def read(field: str, text: str) -> Any:
        return value_of(text)

    found: dict[str, Any] = dict(space(searched, read))
    if not found:
        rate: Any = config.recipe
        centre = rate.lr or 1e-3
        found = {"lr": Range(centre / 10, centre * 10, log=True)}
    for field, values in found.items():
        changed(config, {field: values.low if isinstance(values, Range) else values[0]})
    count = whole("--seeds", options["seeds"], SEEDS, least=1)
    folder = Path(options["out"] or Path("runs") / f"tune-{name}-{config.task.part_name()}")

    def make(where: Path, settings: Mapping[str, Any], seed: int) -> Job:
        mine = changed(config, settings)
        mine = replace(mine, settings=replace(mine.settings, seed=seed, threads=mine.settings.threads or 1))
        return Job(where, mine.to_json(), threads=mine.settings.threads or 1)

    def value(job: Job) -> float:
        return measured(metric, job.folder, job.result() or {})

    trials = whole("--trials", options["trials"], 12, least=1)
    about: dict[str, Any] = {
        "config": config.to_json(),
        "search": {k: str(v) for k, v in found.items()},
        "metric": metric,
    }
    about |= {"better": better, "seeds": count}
    _same(folder, json.loads(json.dumps(about)))
    tuning = Tuning(folder, make, value, found, trials, tuple(range(FIRST_SEED, FIRST_SEED + count)), better)
    with Watch(f"tune {name}", quiet) as watch:
        record = tuning.run(engine, watch)
    rows = sorted(record["results"], key=lambda r: -r["mean"] if better == "higher" else r["mean"])
    for row in rows:
        print(f"{row['mean']:10.4g}  " + " ".join(flag(k, v) for k, v in row["settings"].items()))
    best = " ".join(flag(k, v) for k, v in record["best"].items())
    print(f"{folder}: best of {record['trials']} trials by {metric}: {best}")


def _same(folder: Path, about: Mapping[str, Any]) -> None:
    """Take the folder for a tuning; refuse one that holds another."""
    path = folder / "question.json"
    if path.is_file() and json.loads(path.read_text()) != about:
        raise UserError(f"--out {folder}: holds a tuning of something else; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error.strerror}; choose another") from error


def value_of(text: str) -> Any:
    """A value as JSON writes it (numbers, true, null), or the text itself (a part's name)."""
    try:
        return json.loads(text)
    except ValueError:
        return {"None": None, "True": True, "False": False}.get(text, text)


def flag(name: str, value: Any) -> str:
    """A setting as a flag."""
    return f"--{name.replace('_', '-')} {value}"
