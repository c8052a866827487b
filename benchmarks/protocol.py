"""What one measuring process tells the harness: a single JSON line on standard output.

Every script of `peers/` and `ours/` runs in a process of its own, with its own environment's Python, from the
repository's root: `python -m benchmarks.peers.sb3_cartpole speed`. It imports nothing but this module and its library.
"""

from __future__ import annotations

import json
import resource
import sys
from importlib.metadata import version
from typing import Any


def peak_mb() -> float:
    """Largest resident size of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1024**2 if sys.platform == "darwin" else size / 1024


def report(side: str, packages: tuple[str, ...], **measured: Any) -> None:
    """Print what was measured, with the peak memory of the process and the versions of its packages."""
    versions = {name: version(name) for name in packages}
    print(json.dumps({"side": side, **measured, "peak_mb": round(peak_mb(), 1), "versions": versions}), flush=True)
