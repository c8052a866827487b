"""Tuning: trials over a search space on seeds of their own, recorded, and taken up again after a stop.

DIR/trial_N/seed_M/   a job each (`partita.lab.jobs`)
DIR/tuning.json       the space, every trial with its values, and the best

Small spaces of listed values are tried whole; others are searched by Optuna's tree-structured Parzen estimator,
four trials at a time, the settings as they stand first. Which trial comes next depends on the results alone, so
that a tuning that is taken up again tries the same ones.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.lab.changes import plain
from partita.lab.checkpoint import write_text
from partita.lab.jobs import Engine, Job

FIRST_SEED = 1000  # tuning seeds are 1000, 1001, ...; reported ones are 0, 1, ...
TOGETHER = 4  # trials that are asked for before any of them is told


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, evenly or (log) evenly in the logarithm; whole: whole numbers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"--search: {self.low:g}..{self.high:g} is not a range; give LOW..HIGH with LOW below HIGH")
        if self.log and self.low <= 0:
            raise UserError(f"--search: a logarithmic range must be above 0, got {self.low:g}..{self.high:g}")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (":log" if self.log else "")


Space = Mapping[str, Sequence[Any] | Range]


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and how a trial is measured.

    job: (folder, settings, seed) to the job of one seed. value: of a finished job. search: by flag name, the values to
    choose from or a `Range`. better: higher or lower; the best trial has the best mean over `seeds`, the first of
    equals.
    """

    folder: Path
    job: Callable[[Path, Mapping[str, Any], int], Job]
    value: Callable[[Job], float]
    search: Space
    trials: int
    seeds: tuple[int, ...]
    better: str = "higher"

    def __post_init__(self) -> None:
        check_count("--trials", self.trials)
        if not self.search:
            raise UserError("--search: nothing to tune; give --search FLAG=V1,V2,... or FLAG=LOW..HIGH:log")
        for name, values in self.search.items():
            if not isinstance(values, Range) and not values:
                raise UserError(f"--search {name}: no values to choose from")

    def run(self, engine: Engine, watch: Callable[[Sequence[Job]], None] = lambda jobs: None) -> dict[str, Any]:
        """Carry out all trials that are not done; returns (and writes) the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = size(self.search) <= self.trials
        rows = self._measure(0, grid(self.search), engine, watch) if whole else self._search(engine, watch)
        sign = 1.0 if self.better == "higher" else -1.0
        best = max(rows, key=lambda row: sign * row["mean"])
        record = {
            "trials": len(rows), "seeds": list(self.seeds), "better": self.better,
            "search": {n: str(v) if isinstance(v, Range) else plain({n: list(v)})[n] for n, v in self.search.items()},
            "sampler": "every combination" if whole else "tree-structured Parzen estimator (Optuna), seed 0",
            "best": best["settings"], "results": rows,
        }  # fmt: skip
        write_text(self.folder / "tuning.json", json.dumps(record, indent=1) + "\n")
        return record

    def _measure(
        self, first: int, asked: Sequence[Mapping[str, Any]], engine: Engine, watch: Callable[[Sequence[Job]], None]
    ) -> list[dict[str, Any]]:
        """Carry out some trials together; their settings with the values of every seed."""
        table = [
            [self.job(self.folder / f"trial_{first + i}" / f"seed_{seed}", settings, seed) for seed in self.seeds]
            for i, settings in enumerate(asked)
        ]
        engine.run([job for jobs in table for job in jobs], watch)
        out = []
        for settings, jobs in zip(asked, table, strict=True):
            values = [self.value(job) for job in jobs]
            out.append({"settings": plain(settings), "values": values, "mean": sum(values) / len(values)})
        return out

    def _search(self, engine: Engine, watch: Callable[[Sequence[Job]], None]) -> list[dict[str, Any]]:
        try:
            import optuna
        except ImportError as error:
            raise UserError("tune: needs Optuna; pip install 'partita[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction: Any = "maximize" if self.better == "higher" else "minimize"
        sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True, n_startup_trials=max(4, self.trials // 3))
        study = optuna.create_study(direction=direction, sampler=sampler)
        rows: list[dict[str, Any]] = []
        while len(rows) < self.trials:
            asked = [study.ask() for _ in range(min(TOGETHER, self.trials - len(rows)))]
            settings = [{name: suggest(trial, name, of) for name, of in self.search.items()} for trial in asked]
            found = self._measure(len(rows), settings, engine, watch)
            for trial, row in zip(asked, found, strict=True):
                study.tell(trial, row["mean"])
            rows += found
        return rows


def suggest(trial: Any, name: str, of: Sequence[Any] | Range) -> Any:
    """A value for one name, from an Optuna trial."""
    if isinstance(of, Range):
        if of.whole:
            return trial.suggest_int(name, int(of.low), int(of.high), log=of.log)
        return float(f"{trial.suggest_float(name, of.low, of.high, log=of.log):.4g}")
    return of[trial.suggest_categorical(name, list(range(len(of))))]


def size(search: Space) -> float:
    """How many combinations a space has."""
    count = 1.0
    for values in search.values():
        count *= math.inf if isinstance(values, Range) else len(values)
    return count


def grid(search: Space) -> list[dict[str, Any]]:
    """Every combination of listed values, the last name changing fastest."""
    lists = [list(values) for values in search.values() if not isinstance(values, Range)]
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*lists)]


def space(words: Sequence[str], read: Callable[[str, str], Any]) -> dict[str, Sequence[Any] | Range]:
    """The search space that words like "lr=1e-4..1e-2:log" and "credit=rloo,gae" describe; `read` reads a value."""
    out: dict[str, Sequence[Any] | Range] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not text:
            raise UserError(f"--search {word}: expected FLAG=V1,V2,... or FLAG=LOW..HIGH or FLAG=LOW..HIGH:log")
        name = name.removeprefix("--").replace("-", "_")
        if ".." in text:
            bounds, _, scale = text.partition(":")
            low, _, high = bounds.partition("..")
            if scale not in ("", "log"):
                raise UserError(f"--search {word}: {scale!r} is no scale; the only one is log")
            try:
                ends = float(low), float(high)
            except ValueError:
                raise UserError(f"--search {word}: {bounds} is not a range of numbers") from None
            out[name] = Range(*ends, log=scale == "log", whole=all(t.strip().isdigit() for t in (low, high)))
        else:
            out[name] = [read(name, value) for value in text.split(",")]
    return out
