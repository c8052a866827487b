"""Comparisons: several arms over the same seeds, in one folder that can be taken up again.

DIR/comparison.json             the arms, in full
DIR/ARM/seed_N/                 a job each (`partita.lab.jobs`), with its run
DIR/summary.json, report.html   what came of it
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.lab.checkpoint import write_text
from partita.lab.config import Config
from partita.lab.jobs import Engine, Job
from partita.lab.measures import EVALUATED, check, measured
from partita.lab.run import read_rows


@dataclass(frozen=True)
class Comparison:
    """Arms (configurations by label), each to be run with every seed.

    A seed decides the initial weights, the problems and their order, and the problems of the evaluations: arms with
    the same seed meet the same. metric: a measure (`partita.lab.measures`). better: higher or lower.
    threshold: of the training curve, for the time to reach it. measure: see `Job`.
    """

    folder: Path
    arms: Mapping[str, Config]
    seeds: tuple[int, ...]
    metric: str
    better: str = "higher"
    threshold: float | None = None
    measure: str | None = None

    def __post_init__(self) -> None:
        check(self.metric)
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise UserError(f"--seeds: expected different seeds, got {', '.join(map(str, self.seeds)) or 'none'}")
        if self.better not in ("higher", "lower"):
            raise UserError(f"--better: expected higher or lower, got {self.better!r}")
        for label, config in self.arms.items():
            if not re.fullmatch(r"[\w.+=-]{1,100}", label) or label.startswith((".", "-")):
                raise UserError(
                    f"arm {label!r}: a label is made of up to 100 letters, digits and . _ + = -; write LABEL=RECIPE"
                )
            if self.evaluated and not config.settings.eval_size:
                raise UserError(
                    f"--metric {self.metric}: is measured after training, and --eval-size is 0; raise it, or give "
                    f"--metric {self.metric}:late"
                )

    def job(self, label: str, seed: int) -> Job:
        """The job of one arm and seed."""
        config = self.arms[label]
        config = replace(config, settings=replace(config.settings, seed=seed, threads=config.settings.threads or 1))
        return Job(
            self.folder / label / f"seed_{seed}",
            config.to_json(),
            measure=self.measure,
            threads=config.settings.threads or 1,
        )

    @property
    def evaluated(self) -> bool:
        """Whether arms are compared by the evaluation after training."""
        return self.measure is None and self.metric in EVALUATED

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, seed by seed, so that pairs finish together."""
        return [self.job(label, seed) for seed in self.seeds for label in self.arms]

    def open(self) -> None:
        """Take the folder: write what the comparison is, or see that what it holds fits.

        More seeds, or another measure, are the same comparison; so is another arm beside those that it holds.
        """
        path = self.folder / "comparison.json"
        mine = {label: config.to_json() for label, config in self.arms.items()}
        if path.is_file():
            try:
                held = json.loads(path.read_text())["arms"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"--out {self.folder}: its comparison.json cannot be read; choose another") from error
            plain = json.loads(json.dumps(mine))
            if odd := sorted(k for k in plain if k in held and held[k] != plain[k]):
                raise UserError(
                    f"--out {self.folder}: holds a comparison whose {', '.join(odd)} differs; choose another folder"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about: dict[str, Any] = {
                "arms": mine,
                "seeds": list(self.seeds),
                "metric": self.metric,
                "better": self.better,
            }
            about |= {"threshold": self.threshold, "measure": self.measure}
            write_text(path, json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--out {self.folder}: cannot be written: {error.strerror}; choose another") from error

    def run(self, engine: Engine, watch: Callable[[Sequence[Job]], None] = lambda jobs: None) -> None:
        """Carry out all jobs that are not done; one process at a time.

        Whether the metric exists shows once the first run is done: the comparison then stops, not after the last.
        """
        self.open()
        found: list[float] = []

        def look(jobs: Sequence[Job]) -> None:
            watch(jobs)
            for job in jobs:
                if not found and (result := job.result()) is not None:
                    found.append(measured(self.metric, job.folder, result))

        with alone(self.folder):
            engine.run(self.jobs, look)

    def values(self, metric: str | None = None) -> dict[str, list[float]]:
        """What was measured: for each arm a number a seed, in the order of `seeds`."""
        out: dict[str, list[float]] = {label: [] for label in self.arms}
        for seed in self.seeds:
            for label in self.arms:
                job = self.job(label, seed)
                result = job.result()
                if result is None:
                    raise UserError(f"{job.folder}: is not finished; run the same command again to go on")
                out[label].append(measured(metric or self.metric, job.folder, result))
        return out

    def finished(self) -> tuple[int, ...]:
        """The seeds that all arms have finished; UserError where there is none."""
        done = tuple(seed for seed in self.seeds if all(self.job(label, seed).result() for label in self.arms))
        if not done:
            raise UserError(f"{self.folder}: no seed is finished in all arms yet; run the same command again to go on")
        return done

    def curves(self, label: str, name: str, axis: str) -> list[tuple[list[float], list[float]]]:
        """Curves (x, y) of a metric, one a seed, x increasing and both finite; axis: "step", "samples" or "seconds"."""
        out = []
        for seed in self.seeds:
            rows = read_rows(self.job(label, seed).folder / "run" / "metrics.jsonl")
            spent = 0.0
            x: list[float] = []
            y: list[float] = []
            for row in rows:
                spent += row.get("samples", 0.0)
                place = spent if axis == "samples" else float(row[axis])
                if math.isfinite(row.get(name, math.nan)) and (not x or place > x[-1]):
                    x.append(place)
                    y.append(float(row[name]))
            out.append((x, y))
        return out

    def results(self) -> list[dict[str, Any]]:
        """The results of all jobs, with their arms, seeds and wall-clock."""
        found = []
        for seed in self.seeds:
            for label in self.arms:
                found.append({"arm": label, **(self.job(label, seed).result() or {})})
        return found

    @staticmethod
    def read(folder: Path) -> Comparison:
        """The comparison in a folder."""
        try:
            data = json.loads((folder / "comparison.json").read_text())
            arms = {label: Config.from_json(config) for label, config in data.pop("arms").items()}
            return Comparison(folder, arms, tuple(data.pop("seeds")), **data)
        except OSError as error:
            raise UserError(f"{folder}: not a comparison (it has no comparison.json)") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / 'comparison.json'}: cannot be read: {error}") from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block, no other process works in the folder."""
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--out {folder}: another process is comparing in it; wait, or choose another") from error
        yield


def settled(config: Config) -> Config:
    """The configuration with every number that does not need the policy filled in."""
    recipe: Any = config.recipe
    return replace(config, recipe=recipe.settle(config.task))


def default_metric(config: Config) -> str:
    """What arms on the task are compared by unless it is said."""
    return "return" if config.task.domain == "control" else "success"
