"""A run as the rules see it: configuration, evaluations, and each metric as a series of finite numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partita.core import registry
from partita.lab.config import Config
from partita.lab.records import Record, read


@dataclass(frozen=True, eq=False)
class Series:
    """A metric over the steps at which it was logged, both (N,)."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def up_to(self, step: float) -> Series:
        """The part at steps no later than `step`."""
        keep = self.steps <= step
        return Series(self.steps[keep], self.values[keep])


@dataclass(frozen=True)
class Case:
    """A run under examination. `config` is None where a part of it cannot be loaded here."""

    name: str
    raw: dict[str, Any]
    config: Config | None
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    finished: bool

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self.metrics[-1]["step"])

    @property
    def domain(self) -> str:
        """control or language; by the metrics where the configuration cannot be loaded."""
        if self.config is not None:
            return str(self.config.task.domain)
        known = registry.index()["parts"].get("policy", {}).get(_part(self.raw.get("policy")), {})
        domains = known.get("domains", [])
        if len(domains) == 1:
            return str(domains[0])
        return "language" if "tokens" in self.metrics[-1] else "control"

    @property
    def score(self) -> str:
        """The metric that says how well the task is done: success where there is one, else the return."""
        return "success" if any("success" in row for row in self.metrics) else "return"

    def series(self, name: str) -> Series:
        """A metric; steps at which it was not logged, or not finite, are left out."""
        held = [(row["step"], v) for row in self.metrics if (v := number(row.get(name))) is not None]
        return Series(np.array([s for s, _ in held], dtype=int), np.array([v for _, v in held], dtype=float))

    def setting(self, path: str) -> Any:
        """A value of the configuration by the path of its flag, `objective.clip_high`; None where there is none."""
        here: Any = self.raw
        for key in path.split("."):
            if isinstance(here, list):
                here = next((p for p in here if _part(p) == key), None)
            else:
                here = here.get(key) if isinstance(here, dict) else None
        return here


def from_record(record: Record) -> Case:
    """The case of a run that has been read."""
    evaluations = [
        e for e in record.evaluations if all(number(e.get(k)) is not None for k in ("step", "mean", "low", "high"))
    ]
    return Case(record.name, record.raw, record.config, record.metrics, evaluations, record.finished)


def open_case(folder: Path, name: str | None = None) -> Case:
    """The case of the run in `folder`; UserError where there is none."""
    return from_record(read(folder, name or folder.resolve().name))


def number(value: Any) -> float | None:
    """A finite number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _part(value: Any) -> str:
    return str(value.get("part", "")) if isinstance(value, dict) else ""
