"""Progress over many jobs: a bar on a terminal, else a line whenever one is done."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partita.lab.jobs import Job


class Watch:
    """Follows jobs by what they leave in their folders; call it with all of them as often as you like."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self.done: set[Path] | None = None
        self.bar: Any = None
        self.began = time.monotonic()

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Look at the jobs and say what has changed."""
        if self.quiet or not jobs:
            return
        finished = {job.folder for job in jobs if (job.folder / "result.json").exists()}
        first = self.done is None
        new = [job for job in jobs if job.folder in finished - (self.done or set())]
        self.done = finished
        if first:
            self._start(jobs, len(finished))
        shares = len(finished) + sum(share(job) for job in jobs if job.folder not in finished)
        if self.bar is not None:
            self.bar.update(self.task, completed=shares, numbers=f"{len(finished)} of {len(jobs)} runs")
        elif not first:
            for job in new:
                print(f"{self.title}: {name(job)}  {outcome(job)}  ({len(finished)} of {len(jobs)})", flush=True)

    def _start(self, jobs: Sequence[Job], finished: int) -> None:
        if finished:
            print(f"{self.title}: {finished} of {len(jobs)} were finished before", flush=True)
        if sys.stdout.isatty() and finished < len(jobs):
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=len(jobs), completed=finished, numbers="")

    def close(self) -> None:
        """Put the terminal back as it was."""
        if self.bar is not None:
            self.bar.stop()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def name(job: Job) -> str:
    """ARM, seed N."""
    return f"{job.folder.parent.name} {job.folder.name.replace('_', ' ')}"


def outcome(job: Job) -> str:
    """What came of a job, in a few words."""
    result = job.result() or {}
    told = result.get("after") or {}
    parts = [f"{told['metric']} {told['mean']:.3f}"] if told else []
    if "value" in result:
        parts.append(f"value {result['value']:.4g}")
    return "  ".join([*parts, f"{result.get('spent', 0.0):.1f} s"])


def share(job: Job) -> float:
    """How much of a run is done, from 0 to 1: of its steps, samples or seconds, by the last line of its metrics."""
    config = job.config or {}
    run = config.get("run") or {}
    try:
        with open(job.folder / "run" / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            row = json.loads(file.read().splitlines()[-1])
        spent = {"steps": row["step"], "samples": row["step"] * row.get("samples", 0), "seconds": row["seconds"]}
        goals = {"steps": config.get("steps"), "samples": run.get("samples"), "seconds": run.get("seconds")}
        return min(1.0, max(spent[name] / goal for name, goal in goals.items() if goal))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return 0.0
