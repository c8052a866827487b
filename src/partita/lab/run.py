"""A run with a folder: configuration, metrics, checkpoints, and going on after any interruption.

DIR/config.json      what the run is
DIR/metrics.jsonl    a line a step
DIR/evaluations.jsonl   a line an evaluation: mean, interval, some samples
DIR/checkpoints/     the last two, each whole
DIR/policy/          the trained policy, once finished
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from partita.core import ranks
from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.lab import checkpoint
from partita.loops.run import Run, Stateful

KEEP = 2
CLOCK = ("seconds", "steps_per_second", "tokens_per_second", "search_seconds")  # metrics in which equal runs differ


class FolderRun(Run):
    """A run that writes itself down and can be killed at any moment.

    Resuming continues from the last checkpoint: metrics beyond it are cut off and the steps are taken again, to
    the same bits. `watch` is called with (step, metrics) after each step.
    """

    def __init__(
        self, folder: Path, seed: int, save_every: int | None, until: float | None = None,
        samples: int | None = None, limit: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(seed)
        self.folder, self.save_every, self.until = folder, save_every, until
        self.samples, self.limit = samples, limit
        self._sampled = 0.0
        self.watch: list[Callable[[int, dict[str, float], Batch | None], None]] = []
        self.reached = False
        self.interrupted = False
        self.step = 0
        self._lock: IO[str] | None = None
        self._started = self._last = time.perf_counter()
        self._spent = 0.0

    # -- the folder ---------------------------------------------------------------------------------------------

    def open(self, config: Mapping[str, Any] | None) -> None:
        """Take the folder: create it with `config`, or (None) reopen it to resume. One process at a time.

        Of several ranks the first one alone writes, here and later.
        """
        if ranks.rank() == 0:
            self._take(config)
        ranks.wait()
        if ranks.rank() and config is None:
            self._cut(self._last_step())

    def _take(self, config: Mapping[str, Any] | None) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "a")  # noqa: SIM115 - held as long as the run
        except OSError as error:
            raise UserError(
                f"--out {self.folder}: cannot be written: {error.strerror}; choose another folder"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"--out {self.folder}: another process is running in it; wait, or choose another"
            ) from error
        if config is not None:
            if (self.folder / "config.json").exists():
                raise UserError(
                    f"--out {self.folder}: holds a run; continue it with --resume {self.folder}, or choose another"
                )
            (self.folder / "checkpoints").mkdir(exist_ok=True)
            checkpoint.write_text(self.folder / "config.json", json.dumps(config, indent=1) + "\n")
        else:
            self._cut(self._last_step())

    def _last_step(self) -> int:
        """The step of the last whole checkpoint; 0 without one."""
        found = self.checkpoints()
        return int(found[-1].name.split("_")[1]) if found else 0

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in (self.folder / "checkpoints").glob("step_*") if p.is_dir())

    def spill(self, name: str) -> Path:
        return self.folder / name

    # -- what the loop calls ------------------------------------------------------------------------------------

    def steps(self, count: int, state: Mapping[str, Stateful]) -> Iterator[int]:
        every = self.save_every or max(1, count // 10)
        self._restore(state)
        self._started = self._last = time.perf_counter()
        with _Interrupts(self):
            while self.step < count and not self.stopped:
                self.step += 1
                yield self.step
                self.stopped, self.reached = ranks.agreed([self.stopped, self.reached])
                if self.step % every == 0 or self.step == count or self.stopped:
                    self._save(state)

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        now = time.perf_counter()
        row = {"step": step, **metrics, "seconds": self._spent + now - self._started}
        for name in ("steps", "tokens"):
            if name in metrics:
                row[f"{name}_per_second"] = metrics[name] / max(now - self._last, 1e-9)
        self._last = now
        self.metrics.append(row)
        self.append("metrics", row)
        goal = row.get("return" if "window" in row else "success")
        if self.until is not None and goal is not None and goal >= self.until and row.get("window", 100) >= 100:
            self.reached = self.stopped = True
        self._sampled += row.get("samples", 0)
        if self.samples is not None and self._sampled >= self.samples:
            self.reached = self.stopped = True
        if self.limit is not None and row["seconds"] >= self.limit:
            self.reached = self.stopped = True
        for watch in self.watch:
            watch(step, row, batch)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line to `NAME.jsonl`; rows must hold the step they belong to."""
        if ranks.rank() == 0:
            with open(self.folder / f"{name}.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")

    # -- saving and restoring -----------------------------------------------------------------------------------

    def _save(self, state: Mapping[str, Stateful]) -> None:
        held = {name: part.state_dict() for name, part in state.items()}
        if not ranks.alike(list(held.get("policy", {}).values())):
            raise UserError(f"step {self.step}: the ranks' policies are no longer the same; --resume {self.folder}")
        spent = self._spent + time.perf_counter() - self._started
        about = {"step": self.step, "seconds": spent, "reached": self.reached}
        target = self.folder / "checkpoints" / f"step_{self.step:08d}"
        try:
            checkpoint.save(target, {"run": about, **held})
        except OSError as error:
            raise UserError(
                f"{target}: cannot be written: {error.strerror}; free some space and --resume {self.folder}"
            ) from error
        for old in self.checkpoints()[:-KEEP] if ranks.rank() == 0 else ():
            _remove(old)

    def _restore(self, state: Mapping[str, Stateful]) -> None:
        found = self.checkpoints()
        if not found:
            self._cut(0)
            return
        held = checkpoint.load(found[-1])
        about = held.pop("run")
        if set(held) != set(state):
            odd = ", ".join(sorted(set(held) ^ set(state)))
            raise UserError(f"--resume {self.folder}: its checkpoint was made by another recipe (they differ in {odd})")
        for name, part in state.items():
            try:
                part.load_state_dict(held[name])
            except (KeyError, ValueError, RuntimeError) as error:
                raise UserError(f"--resume {self.folder}: its checkpoint does not fit {name}: {error}") from error
        self.step, self._spent, self.reached = about["step"], about["seconds"], about["reached"]
        self.stopped = self.reached
        self._cut(self.step)

    def _cut(self, step: int) -> None:
        """Drop what was written after the checkpoint of `step`."""
        for name in ("metrics", "evaluations"):
            path = self.folder / f"{name}.jsonl"
            if not path.exists():
                continue
            rows = []
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if row["step"] <= step:
                    rows.append(row)
            if ranks.rank() == 0:
                checkpoint.write_text(path, "".join(json.dumps(r) + "\n" for r in rows))
            if name == "metrics":
                self.metrics = rows
                self._sampled = float(sum(r.get("samples", 0) for r in rows))


class _Interrupts:
    """Within the block, Ctrl-C and SIGTERM ask the run to stop after the step; a second one stops it at once."""

    def __init__(self, run: FolderRun) -> None:
        self.run = run

    def __enter__(self) -> None:
        self.before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: whoever owns it handles signals
            self.before = {}

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.run.interrupted:
            raise KeyboardInterrupt
        self.run.interrupted = self.run.stopped = True


def _remove(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that a kill never leaves half of one under its name."""
    import shutil

    hidden = folder.with_name(f".old.{folder.name}.{os.getpid()}")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; an unfinished last line is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
