"""What a run ran on: versions, machine and date, written into the run's folder for whoever reads it later."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "numpy", "gymnasium")


def describe() -> dict[str, Any]:
    """Versions, platform, cores that this process may use, threads of torch, accelerator, and the date (UTC)."""
    import torch

    from partita import __version__

    about: dict[str, Any] = {"partita": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    about["platform"] = platform.platform()
    about["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        about["accelerator"] = torch.cuda.get_device_name()
    about["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    return about


def record(folder: Path) -> None:
    """Write `environment.json`; a run resumed elsewhere keeps the first description and lists what changed."""
    from partita.lab.checkpoint import write_text

    now, path = describe(), folder / "environment.json"
    held = read(folder)
    if held:
        last = {**held, **{k: v for change in held.get("resumed", []) for k, v in change.items()}}
        changed = {k: v for k, v in now.items() if last.get(k) != v}
        if set(changed) <= {"date"}:
            return
        now = {**held, "resumed": [*held.get("resumed", []), changed]}
    write_text(path, json.dumps(now, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """What `record` wrote; empty where there is nothing, or nothing readable."""
    try:
        found = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
