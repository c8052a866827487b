"""Jobs: one seed of one arm, in a folder of its own, done once however often it is begun.

DIR/run/          the run, when the job trains by recipe
DIR/result.json   what came of it, written last and whole: its presence says that the job is done
DIR/error.json    why it failed, when it did
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from partita.core.errors import UserError
from partita.lab.files import write_text

PATIENCE = 20.0  # seconds that a run may still be held by a process that was killed with its parent


@dataclass(frozen=True)
class Job:
    """A run to carry out, or a function to call.

    config: of the run, as `Config.to_json` gives it; then `measure`, "module:function", may take the finished run's
    folder and return a number. call: "module:function", called with `arguments`; returns a number, or a dictionary
    of numbers that holds "value". threads: of torch; results depend on it, so it is part of the job.
    """

    folder: Path
    config: Mapping[str, Any] | None = None
    call: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    measure: str | None = None
    threads: int = 1

    def result(self) -> dict[str, Any] | None:
        """What came of it; None while it is not done."""
        try:
            return json.loads((self.folder / "result.json").read_text())
        except (OSError, ValueError):
            return None

    def error(self) -> str | None:
        """Why it failed; None where it did not."""
        try:
            return json.loads((self.folder / "error.json").read_text())["error"]
        except (OSError, ValueError, KeyError):
            return None

    def to_json(self) -> dict[str, Any]:
        """As plain values, for another process."""
        return {**asdict(self), "folder": str(self.folder)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Job:
        """Undo `to_json`."""
        return Job(**{**data, "folder": Path(data["folder"])})


class Engine(Protocol):
    """Whatever carries out jobs: processes here, or a cluster."""

    def run(self, jobs: Sequence[Job], watch: Callable[[Sequence[Job]], None]) -> None:
        """Carry out every job that has no result yet, each in its folder; `watch` is called now and then.

        Returns when all are done; raises UserError that names the job when one fails.
        """
        ...


def function(name: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def reference(call: Callable[..., Any]) -> str:
    """The name, "module:function", under which another process finds a function."""
    if "<" in call.__qualname__ or "." in call.__qualname__ or call.__module__ == "__main__":
        raise UserError(
            f"{call.__qualname__}: must be a function at the top of a module that others can import, to be called there"
        )
    return f"{call.__module__}:{call.__qualname__}"


def perform(job: Job) -> dict[str, Any] | None:
    """Do the job here (or go on with it) and write its result; None when it was interrupted and can go on later."""
    found = job.result()
    if found is not None:
        return found
    import torch

    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "error.json").unlink(missing_ok=True)
    torch.set_num_threads(job.threads)
    started, processor = time.perf_counter(), time.process_time()
    try:
        found = _train(job) if job.config is not None else _call(job)
    except UserError as error:
        write_text(job.folder / "error.json", json.dumps({"error": str(error)}))
        raise
    except Exception as error:
        (job.folder / "error.log").write_text(traceback.format_exc())
        told = f"{type(error).__name__}: {error} (traceback in {job.folder / 'error.log'})"
        write_text(job.folder / "error.json", json.dumps({"error": told}))
        raise UserError(told) from error
    if found is not None:
        found |= {
            "spent": round(time.perf_counter() - started, 3),
            "processor": round(time.process_time() - processor, 3),
        }
        write_text(job.folder / "result.json", json.dumps(found) + "\n")
    return found


def _train(job: Job) -> dict[str, Any] | None:
    from partita.lab.config import Config
    from partita.lab.train import launch

    folder = job.folder / "run"
    _wait(folder)
    begun = (folder / "config.json").is_file()
    config = Config.read(folder / "config.json") if begun else Config.from_json(dict(job.config or {}))
    result = launch(config, folder, resume=begun)
    if not result.finished:
        return None
    out: dict[str, Any] = {
        "seed": config.settings.seed,
        "steps": len(result.metrics),
        "seconds": result.metrics[-1]["seconds"] if result.metrics else 0.0,
    }
    for name in ("before", "after"):
        if (held := getattr(result, name)) is not None:
            out[name] = {k: v for k, v in asdict(held).items() if k != "samples"}
    if job.measure is not None:
        out |= numbers(function(job.measure)(folder), job.measure)
    return out


def _wait(folder: Path) -> None:
    """Wait until no process holds the run: one that was killed with its parent may take a moment to go."""
    with contextlib.suppress(OSError), open(folder / ".lock", "a") as lock:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)


def _call(job: Job) -> dict[str, Any]:
    assert job.call is not None
    return {"seed": job.arguments.get("seed"), **numbers(function(job.call)(**job.arguments), job.call)}


def numbers(value: Any, name: str) -> dict[str, Any]:
    """A measured number as {"value": number}, a dictionary of numbers as it is; UserError for anything else."""
    table = value if isinstance(value, Mapping) else {"value": value}
    if not isinstance(table.get("value"), int | float) or isinstance(table["value"], bool):
        raise UserError(f"{name}: expected a number, or a dictionary that holds `value`, got {value!r}")
    if not math.isfinite(table["value"]):
        raise UserError(f"{name}: gave {table['value']}; expected a finite number")
    return dict(table)


def unfinished(jobs: Iterable[Job]) -> list[Job]:
    """The jobs that have no result yet."""
    return [job for job in jobs if job.result() is None]
