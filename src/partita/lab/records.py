"""Runs as a report tells them: read from their folders, grouped by task, compared slot by slot, curves thinned."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.core.part import Part, equations
from partita.core.recipe import differences
from partita.lab import environment
from partita.lab.catalogue import describe
from partita.lab.config import Config
from partita.lab.run import read_rows

POINTS = 1000  # a longer curve is averaged into this many points
NOT_FIELDS = ("recipe", "loop", "run", "partita")  # keys of a configuration that are told elsewhere
WATCHED = (
    ("return", "Return", "mean over the episodes of a step, or over the last 100"),
    ("success", "Success", "share of the trajectories of a step"),
    ("entropy", "Entropy", "nats per action"),
    ("kl", "KL", "nats per action, from the policy that acted to the updated one"),
    ("ref_kl", "KL to the reference", "nats per action"),
    ("clip_fraction", "Clip fraction", "share of steps beyond the clip"),
    ("length", "Length", "steps of an episode, or tokens of a response"),
    ("degenerate", "Degenerate", "share of trajectories in groups of equal returns"),
    ("start_kl", "KL at the first update", "nats per action, from the policy that acted to the one that learns"),
    ("staleness", "Staleness", "updates since the policy that acted was current"),
    ("turns", "Turns", "actions of an episode in a world"),
    ("malformed", "Malformed", "share of actions that the world could not read"),
    ("failed", "Failed", "trajectories left out because their world broke"),
    ("explained_variance", "Explained variance", "1 is a perfect critic, 0 a constant one"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("loss", "Loss", "mean over the updates watched in a step"),
)


@dataclass(frozen=True)
class Row:
    """A line of a configuration: the field, its value in words, and the equations of the parts in it."""

    field: str
    value: str
    equations: str = ""


@dataclass(frozen=True)
class Record:
    """A run as read from its folder. `config` is None when a part of it cannot be loaded here."""

    name: str
    raw: dict[str, Any]
    config: Config | None
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    environment: dict[str, Any]
    finished: bool

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self.metrics[-1]["step"])

    @property
    def before(self) -> dict[str, Any] | None:
        """The evaluation before training."""
        return next((e for e in self.evaluations if e["step"] == 0), None)

    @property
    def after(self) -> dict[str, Any] | None:
        """The last evaluation, which is that after training once the run has finished."""
        later = [e for e in self.evaluations if e["step"] > 0]
        return later[-1] if later else None

    @property
    def task(self) -> str:
        """The task by name; a Gymnasium environment by its id."""
        about = self.raw["task"]
        return f"gym:{about['id']}" if about["part"] == "gym" and "id" in about else str(about["part"])

    def rows(self) -> list[Row]:
        """The configuration, field by field: slots, numbers, policy, task, settings of the run."""
        out = []
        for name, value in self.raw.items():
            if name in NOT_FIELDS:
                continue
            held = self._held(name)
            if held is None:
                out.append(Row(name, words(value)))
                continue
            parts = [p for p in (held if isinstance(held, tuple) else (held,)) if isinstance(p, Part)]
            texts = [equations(type(p)) for p in parts] if name != "task" else []
            out.append(Row(name, describe(held) if held != () else "none", "\n\n".join(t for t in texts if t)))
        return out + [Row(f"run.{k}", words(v)) for k, v in self.raw.get("run", {}).items()]

    def _held(self, name: str) -> Any:
        if self.config is None:
            return None
        return getattr(self.config, name) if name in ("task", "policy") else getattr(self.config.recipe, name)


def read_all(folders: Sequence[Path]) -> list[Record]:
    """The runs in the folders, each once, under names that tell them apart."""
    unique = list({folder.resolve(): None for folder in folders})
    names = [folder.name for folder in unique]
    return [
        read(folder, folder.name if names.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}")
        for folder in unique
    ]


def read(folder: Path, name: str) -> Record:
    """A run, finished or not, from its folder; an unfinished last line of its metrics is left out."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a run (it has no config.json)")
    try:
        raw = json.loads(path.read_text())
        metrics, evaluations = (_rows(folder / f"{n}.jsonl") for n in ("metrics", "evaluations"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read: {error}") from error
    if not isinstance(raw, dict) or "recipe" not in raw or not _is_part(raw.get("task")):
        raise UserError(f"{path}: not the configuration of a run (no recipe or task in it)")
    if not isinstance(raw.get("run", {}), dict):
        raise UserError(f"{path}: run: expected the settings of the run, got {raw['run']!r}")
    if not metrics:
        raise UserError(f"{folder}: holds no metrics yet; continue it with partita train --resume {folder}")
    try:
        config = Config.from_json(raw)
    except (UserError, TypeError, ValueError, AttributeError):
        config = None  # a part from a file that has moved, or of another version: its names and numbers remain
    finished = (folder / "policy").is_dir()
    return Record(name, raw, config, metrics, evaluations, environment.read(folder), finished)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(path) if isinstance(row, dict) and isinstance(row.get("step"), int | float)]


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "part" in value


def words(value: Any) -> str:
    """A part as a configuration file holds it, in one line, as `describe` writes parts."""
    if isinstance(value, list):
        return "(" + ", ".join(words(v) for v in value) + ")" if value else "none"
    if _is_part(value):
        return f"{value['part']}({', '.join(f'{k}={words(v)}' for k, v in value.items() if k != 'part')})"
    return str(value)


def title(run: Record) -> str:
    """The recipe by name, and the slots in which it is not the published one: `grpo but credit=leave_one_out()`."""
    from partita.core import registry

    if run.config is None:
        return str(run.raw["recipe"])
    ours, theirs = run.config.recipe, registry.recipe(run.config.name)
    theirs = theirs.settle(run.config.task) if hasattr(theirs, "settle") else theirs  # as it is on this task
    changed = [
        f"{name}={describe(mine) if mine != () else 'none'}"
        for name, mine, held in differences(ours, theirs)
        if name in ours.slots and held is not None
    ]
    return run.config.name + (f" but {', '.join(changed)}" if changed else "")


def changed(a: Record, b: Record) -> list[str]:
    """The fields in which two runs differ, slots first, settings of the run last."""
    left, right = _values(a), _values(b)
    fields = dict.fromkeys([*left, *right])
    found = {f for f in fields if left.get(f) != right.get(f)}
    if a.config is not None and b.config is not None and a.config.recipe.loop == b.config.recipe.loop:
        # what JSON cannot tell apart, the parts themselves do
        found |= {name for name, _, _ in differences(a.config.recipe, b.config.recipe)}
    return [f for f in fields if f in found]


def _values(run: Record) -> dict[str, Any]:
    plain = {k: v for k, v in run.raw.items() if k not in NOT_FIELDS}
    return plain | {f"run.{k}": v for k, v in run.raw.get("run", {}).items()}


def statement(a: Record, b: Record) -> str:
    """In one sentence, how run `b` differs from run `a`."""
    found = changed(a, b)
    if not found:
        return f"{b.name} has the same configuration as {a.name}."
    known = b.config or a.config
    slots = [f for f in found if known is not None and f in known.recipe.slots]
    rest = [f for f in found if f not in slots]
    pieces = []
    if slots:
        total = f" of {len(known.recipe.slots)}" if known is not None else ""
        pieces.append(f"{len(slots)} slot{'s' * (len(slots) > 1)}{total} ({', '.join(slots)})")
    if rest:
        pieces.append(f"{len(rest)} setting{'s' * (len(rest) > 1)} ({', '.join(rest)})")
    return f"{b.name} differs from {a.name} in {' and '.join(pieces)}."


@dataclass(frozen=True)
class Section:
    """The runs of one task, and the curves to draw of them: {"key", "title", "note", "series": [...]}."""

    task: str
    runs: list[Record]
    charts: list[dict[str, Any]]


def sections(runs: Sequence[Record]) -> list[Section]:
    """The runs by task (its settings included), in the order given."""
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(words(run.raw["task"]), []).append(run)
    return [Section(task, held, charts(held)) for task, held in groups.items()]


def charts(runs: Sequence[Record]) -> list[dict[str, Any]]:
    """The evaluations, then every watched metric that some run has."""
    out = []
    points = [(i, [e for e in run.evaluations if _number(e.get("mean")) is not None]) for i, run in enumerate(runs)]
    if any(found for _, found in points):
        names = sorted({str(e.get("metric")) for _, found in points for e in found})
        series = [_evaluated(i, runs[i], found) for i, found in points if found]
        drifts = {e.get("drift") is None for _, found in points for e in found}
        how = "greedy or sampled" if len(drifts) > 1 else "greedy" if True in drifts else "sampled"
        note = f"{how}, on fresh problems; mean {' or '.join(names)} and 95% interval"
        out.append({"key": "evaluation", "title": "Evaluation", "note": note, "series": series})
    for key, name, note in WATCHED:
        if key == "return" and _same_as_success(runs):
            continue
        series = [found for i, run in enumerate(runs) if (found := _curve(i, run.metrics, key)) is not None]
        if series:
            out.append({"key": key, "title": name, "note": note, "series": series})
    return out


def _same_as_success(runs: Sequence[Record]) -> bool:
    return all(row.get("return") == row.get("success") for run in runs for row in run.metrics)


def _evaluated(index: int, run: Record, found: list[dict[str, Any]]) -> dict[str, Any]:
    spent = {row["step"]: row.get("seconds") for row in run.metrics}
    y = [_number(e["mean"]) or 0.0 for e in found]
    ends = [(_number(e.get("low")), _number(e.get("high"))) for e in found]
    return {
        "run": index,
        "x": [e["step"] for e in found],
        "t": [_number(spent.get(e["step"], 0.0)) for e in found],
        "y": y,
        "up": [0.0 if high is None else _short(high - m) for m, (_, high) in zip(y, ends, strict=True)],
        "down": [0.0 if low is None else _short(m - low) for m, (low, _) in zip(y, ends, strict=True)],
    }


def _curve(index: int, metrics: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    held = [
        (row["step"], _number(row.get("seconds")), v) for row in metrics if (v := _number(row.get(key))) is not None
    ]
    if not held:
        return None
    size = math.ceil(len(held) / POINTS)
    kept = [held[i : i + size] for i in range(0, len(held), size)]
    return {
        "run": index,
        "x": [bucket[-1][0] for bucket in kept],
        "t": [bucket[-1][1] for bucket in kept],
        "y": [_short(sum(v for _, _, v in bucket) / len(bucket)) for bucket in kept],
    }


def _number(value: Any) -> float | None:
    """A finite number, short enough for a page; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return _short(value)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
