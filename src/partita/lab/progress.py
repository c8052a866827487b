"""The progress line: the numbers that a practitioner watches, while a run goes on."""

from __future__ import annotations

import sys
from typing import Any

WATCHED = (
    ("return", "return", "{:.2f}"), ("success", "success", "{:.3f}"), ("kl", "kl", "{:.1e}"),
    ("entropy", "entropy", "{:.2f}"), ("clip_fraction", "clip", "{:.3f}"), ("length", "length", "{:.1f}"),
    ("explained_variance", "ev", "{:.2f}"), ("accuracy", "accuracy", "{:.3f}"), ("margin", "margin", "{:.3f}"),
)  # fmt: skip


def numbers(metrics: dict[str, float]) -> str:
    """The watched numbers of a step, in one line."""
    hidden = {"return"} if "success" in metrics else set()
    return "  ".join(
        f"{short} {style.format(metrics[name])}"
        for name, short, style in WATCHED
        if name in metrics and name not in hidden
    )


def said(evaluation: Any) -> str:
    """An evaluation in words; all but the accuracy on given responses is of greedy ones, or sampled with a drift."""
    if evaluation.metric == "accuracy":
        return str(evaluation)
    return f"greedy {evaluation}" if evaluation.drift is None else f"sampled {evaluation}, {evaluation.drift:.2f} nats"


def rate_of(metrics: dict[str, float]) -> str:
    """How fast the step went."""
    for name in ("tokens", "steps"):
        if f"{name}_per_second" in metrics:
            return f"{metrics[f'{name}_per_second']:,.0f} {name}/s"
    return ""


class Notes:
    """What a person should know of the task, on the error stream; otherwise silent."""

    def start(self, run: Any, config: Any, total: int, before: Any) -> None:
        for line in config.task.notes():
            print(line, file=sys.stderr, flush=True)

    def step(self, step: int, metrics: dict[str, float], batch: Any) -> None:
        pass

    def end(self, result: Any) -> None:
        pass


class Progress(Notes):
    """A live line on a terminal; elsewhere (a file, CI) a plain line about every tenth of the run."""

    def __init__(self) -> None:
        self.bar: Any = None

    def start(self, run: Any, config: Any, total: int, before: Any) -> None:
        super().start(run, config, total, before)
        self.total = total
        self.title = f"{config.name} on {config.task.part_name()}"
        if before is not None:
            print(f"{self.title}: before training, {said(before)}", flush=True)
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
        rate = rate_of(metrics)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, numbers=f"{numbers(metrics)}  {rate}")
        elif step % max(1, self.total // 10) == 0 or step == 1:
            print(f"{self.title}  {step}/{self.total}  {numbers(metrics)}  {rate}", flush=True)

    def end(self, result: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
        if result.after is not None:
            print(f"{self.title}: after training, {said(result.after)}", flush=True)
