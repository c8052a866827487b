"""Trackers: the numbers of a run, also in TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from partita.core.errors import UserError, nearest


class Watcher(Protocol):
    """Follows a run: called when it starts, after each step, and when it ends."""

    def start(self, run: Any, config: Any, total: int, before: Any) -> None: ...
    def step(self, step: int, metrics: dict[str, float], batch: Any) -> None: ...
    def end(self, result: Any) -> None: ...


def tracker(name: str) -> Watcher:
    """The watcher of that name, "tensorboard" or "wandb"; UserError when unknown or not installed.

    Its package is imported here, so that a missing one is told before training starts.
    """
    if name not in TRACKERS:
        raise UserError(f"--track {name}: no such tracker; {nearest(name, TRACKERS)}")
    module, make = TRACKERS[name]
    try:
        return make(importlib.import_module(module))
    except ImportError as error:
        raise UserError(f'--track {name}: not installed; pip install "partita[track]"') from error


class TensorBoard:
    """Event files in DIR/tensorboard; a resumed run drops the steps that it takes again."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def start(self, run: Any, config: Any, total: int, before: Any) -> None:
        self.writer = self.module.SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)
        self.writer.add_text("config", "    " + json.dumps(config.to_json(), indent=1).replace("\n", "\n    "), 0)
        if before is not None and run.step == 0:
            self._evaluation(0, before)

    def step(self, step: int, metrics: dict[str, float], batch: Any) -> None:
        for name, value in metrics.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, result: Any) -> None:
        if result.after is not None:
            self._evaluation(int(result.metrics[-1]["step"]) if result.metrics else 0, result.after)
        self.writer.close()

    def _evaluation(self, step: int, found: Any) -> None:
        for name, value in _evaluation(found).items():
            self.writer.add_scalar(name, value, step)


class WandB:
    """A run of the project `partita`, named after the folder; resuming the folder continues the same one."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def start(self, run: Any, config: Any, total: int, before: Any) -> None:
        from partita.lab.checkpoint import write_text

        held = run.folder / "wandb_id"
        if not held.exists():
            write_text(held, uuid.uuid4().hex[:16] + "\n")
        self.run = self.module.init(
            project="partita", name=run.folder.name, id=held.read_text().strip(), resume="allow",
            dir=str(run.folder), config=config.to_json(),
        )  # fmt: skip
        if before is not None and run.step == 0:
            self.run.log(_evaluation(before), step=0)

    def step(self, step: int, metrics: dict[str, float], batch: Any) -> None:
        self.run.log({name: value for name, value in metrics.items() if name != "step"}, step=step)

    def end(self, result: Any) -> None:
        if result.after is not None:
            step = int(result.metrics[-1]["step"]) if result.metrics else 0
            self.run.log(_evaluation(result.after), step=step)
        self.run.finish(exit_code=0 if result.finished else 1)


def _evaluation(found: Any) -> dict[str, float]:
    return {
        f"evaluation/{found.metric}": found.mean,
        "evaluation/low": found.low,
        "evaluation/high": found.high,
        "evaluation/length": found.length,
    }


TRACKERS: dict[str, tuple[str, Callable[[Any], Watcher]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
}
