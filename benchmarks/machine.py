"""What the measurements were taken on, and how fast it multiplies matrices right now.

python -m benchmarks.machine     # one JSON line
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path


def describe() -> dict[str, str | int | float]:
    """Processor, cores, memory and operating system, without anything that names the computer."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _field(path: Path, name: str) -> str:
    if not path.exists():
        return ""
    return next((line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if line.startswith(name)), "")


def matmul_gflops(size: int = 1024, repeats: int = 15) -> float:
    """Rate of a float32 product of two (size, size) matrices in torch, in 1e9 operations a second, median of repeats.

    rate = 2 * size^3 / seconds
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator)
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:]) / 1e9


if __name__ == "__main__":
    print(json.dumps({**describe(), "matmul_gflops": matmul_gflops(), "load": os.getloadavg()[0]}))
