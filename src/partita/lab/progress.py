"""The progress line: the numbers that a practitioner watches, while a run goes on."""

from __future__ import annotations

import sys
import time
from typing import Any

WATCHED = (
    ("return", "return", "{:.2f}"), ("success", "success", "{:.3f}"), ("kl", "kl", "{:.1e}"),
    ("entropy", "entropy", "{:.2f}"), ("clip_fraction", "clip", "{:.3f}"), ("length", "length", "{:.1f}"),
    ("explained_variance", "ev", "{:.2f}"),
)  # fmt: skip


def numbers(metrics: dict[str, float]) -> str:
    """The watched numbers of a step, in one line."""
    hidden = {"return"} if "success" in metrics else set()
    return "  ".join(
        f"{short} {style.format(metrics[name])}"
        for name, short, style in WATCHED
        if name in metrics and name not in hidden
    )


class Progress:
    """A live line on a terminal; elsewhere (a file, CI) a plain line about every tenth of the run."""

    def __init__(self) -> None:
        self.bar: Any = None

    def start(self, run: Any, config: Any, total: int, before: Any) -> None:
        self.total, self.first, self.began = total, run.step, time.perf_counter()
        self.title = f"{config.name} on {config.task.part_name()}"
        if before is not None:
            print(f"{self.title}: before training, greedy {before}", flush=True)
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=total, completed=run.step, numbers="")

    def step(self, step: int, metrics: dict[str, float], batch: Any) -> None:
        rate = self._rate(metrics)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, numbers=f"{numbers(metrics)}  {rate}")
        elif step % max(1, self.total // 10) == 0 or step == 1:
            print(f"{self.title}  {step}/{self.total}  {numbers(metrics)}  {rate}", flush=True)

    def _rate(self, metrics: dict[str, float]) -> str:
        now = time.perf_counter()
        spent, self.began = now - self.began, now
        for name, unit in (("tokens", "tokens/s"), ("steps", "steps/s")):
            if name in metrics:
                return f"{metrics[name] / max(spent, 1e-9):,.0f} {unit}"
        return ""

    def end(self, result: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
        if result.after is not None:
            print(f"{self.title}: after training, greedy {result.after}", flush=True)
