"""Functions that jobs of the tests call in processes of their own, and made-up comparisons."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_runs

from partita.lab.comparison import Comparison
from partita.lab.config import Config


def square(seed: int) -> dict[str, float]:
    """A number that depends on nothing but its argument, and the process that it came from."""
    return {"value": float(seed * seed), "process": os.getpid()}


def wrong(seed: int) -> float:
    """No number."""
    return 1.0 / (seed - seed)


def killed(marks: str, times: int) -> float:
    """Ends like a process that is out of memory the first `times` times."""
    count = len(list(Path(marks).iterdir()))
    if count < times:
        (Path(marks) / str(count)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(count)


def chatty() -> float:
    """Prints."""
    print("words of a job")
    return 1.0


def sleeper(path: str) -> float:
    """Says which process it is and sleeps."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
    return 0.0


def folder_length(folder: Path) -> float:
    """A measure of a finished run: how many steps its metrics hold."""
    return float(len((folder / "metrics.jsonl").read_text().splitlines()))


def small(name: str = "ppo", **changes: Any) -> Config:
    """An arm that takes a fraction of a second."""
    config = {"ppo": tiny_runs.ppo, "grpo": tiny_runs.grpo}[name](**changes)
    return replace(config, settings=replace(config.settings, eval_every=0, eval_size=4, threads=1))


def made_up(
    folder: Path,
    values: Mapping[str, Sequence[float]],
    curves: Mapping[str, Sequence[float]] | None = None,
    **more: Any,
) -> Comparison:
    """A finished comparison by return whose runs were written by hand; `curves` are returns by step."""
    seeds = tuple(range(len(next(iter(values.values())))))
    arms = {label: small("grpo" if i % 2 else "ppo") for i, label in enumerate(values)}
    found = Comparison(folder, arms, seeds, "return", **more)
    found.open()
    for label, held in values.items():
        steps = list((curves or {}).get(label, (0.0, 1.0)))
        for seed, value in zip(seeds, held, strict=True):
            job = found.job(label, seed)
            run = job.folder / "run"
            run.mkdir(parents=True)
            (run / "policy").mkdir()
            (run / "config.json").write_text(json.dumps(job.config))
            rows = [
                {"step": i + 1, "return": v, "samples": 10.0, "seconds": 2.0 * (i + 1)} for i, v in enumerate(steps)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            about = {"metric": "return", "low": 0.0, "high": 9.0, "count": 4, "length": 1.0}
            result = {"seed": seed, "steps": len(steps), "seconds": 2.0 * len(steps), "spent": 3.0}
            result |= {"before": {**about, "mean": 0.5}, "after": {**about, "mean": value}}
            (job.folder / "result.json").write_text(json.dumps(result))
    return found
