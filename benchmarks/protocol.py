"""What one measuring process tells the harness: a single JSON line on standard output.

Every script of `peers/` and `ours/` runs in a process of its own, with its own environment's Python, from the
repository's root: `python -m benchmarks.peers.sb3_cartpole speed`. It imports nothing but this module and its library.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
from importlib.metadata import version
from typing import Any


def peak_mb() -> float:
    """Largest resident size of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size / 1024**2 if sys.platform == "darwin" else size / 1024, 1)


def rates(ends: list[float], processor: list[float], warm: int, tokens: int) -> dict[str, float | int]:
    """Rates from the wall and processor times at the end of every step, of which the first `warm` do not count.

    microseconds: of a token. cpu_seconds: processor time a step over all threads; unlike the rest it changes little on
    a busy machine.
    """
    seconds = [b - a for a, b in zip(ends[warm - 1 :], ends[warm:], strict=False)]
    return {
        "steps": len(seconds),
        "tokens_per_step": tokens,
        "tokens_per_second": tokens * len(seconds) / sum(seconds),
        "microseconds": 1e6 * sum(seconds) / (tokens * len(seconds)),
        "median_step_seconds": statistics.median(seconds),
        "cpu_seconds": (processor[-1] - processor[warm - 1]) / len(seconds),
    }


def counted(steps: int, seconds: float, processor: float) -> dict[str, float | int]:
    """Rates of so many steps of environments, which took so many seconds, and so many of the processor."""
    return {
        "steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "microseconds": 1e6 * seconds / steps,
        "cpu_microseconds": 1e6 * processor / steps,
    }


def report(side: str, packages: tuple[str, ...], **measured: Any) -> None:
    """Print what was measured, with the peak memory of the process and the versions of its packages."""
    versions = {name: version(name) for name in packages}
    print(json.dumps({"side": side, **measured, "peak_mb": peak_mb(), "versions": versions}), flush=True)
