"""A run stopped after a step and resumed, held to the run that was never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from partita.lab import checkpoint
from partita.lab.config import Config
from partita.lab.run import CLOCK, read_rows
from partita.lab.train import launch


class Stop:
    """A watcher that stops the run after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def start(self, *args: Any) -> None: ...

    def end(self, *args: Any) -> None: ...

    def step(self, step: int, metrics: Any, batch: Any) -> None:
        if step == self.after:
            raise KeyboardInterrupt


def resumed_alike(config: Config, folder: Path, after: int = 2) -> list[dict[str, float]]:
    """Assert that metrics (but for clocks), policies and last checkpoints agree to the bit; the metrics."""
    config = replace(config, settings=replace(config.settings, eval_size=0, save_every=1, threads=1))
    whole = launch(config, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        launch(config, folder / "stopped", watchers=(Stop(after),))
    resumed = launch(config, folder / "stopped", resume=True)
    straight, joined = (
        [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(folder / name / "metrics.jsonl")]
        for name in ("whole", "stopped")
    )
    steps = config.recipe.numbers()["steps"]
    assert len(straight) == steps > after
    assert straight == joined
    assert checkpoint.same(whole.policy.state_dict(), resumed.policy.state_dict())
    held = [checkpoint.load(folder / name / "checkpoints" / f"step_{steps:08d}") for name in ("whole", "stopped")]
    for each in held:
        each["run"].pop("seconds")
    assert checkpoint.same(*held)
    return straight
