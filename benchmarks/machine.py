"""What the measurements were taken on, and how fast it multiplies matrices right now.

python -m benchmarks.machine     # one JSON line
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def describe() -> dict[str, str | int | float]:
    """Processor, cores, memory and operating system, without anything that names the computer."""
    about = Path("/proc/cpuinfo")
    return {
        "cpu": _field(about, "model name") or platform.processor() or platform.machine(),
        "cpu_family": _field(about, "cpu family"),
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

    return _rate(torch.mm, size, repeats)


def onednn_gflops(size: int = 1024, repeats: int = 15) -> float:
    """The same by oneDNN, which is twice as quick on some processors (`partita.core.products`)."""
    import torch

    return _rate(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""), size, repeats)


def _rate(product: Callable[[Any, Any], object], size: int, repeats: int) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator)
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        product(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:]) / 1e9


def operations() -> Any:
    """torch's counter of operations, which knows of all products but oneDNN's."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
        return 2 * x[0] * x[1] * weight[0]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: linear})


if __name__ == "__main__":
    rates = {"matmul_gflops": matmul_gflops(), "onednn_gflops": onednn_gflops()}
    print(json.dumps({**describe(), **rates, "load": os.getloadavg()[0]}))
