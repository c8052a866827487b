"""The on-policy loop of Stable-Baselines3 on the clock: what the scripts of PPO in this folder share."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.protocol import counted


def learnt(model: Any, warm: int, steps: int) -> dict[str, Any]:
    """Environment steps a second of `learn` (collecting and updating), after a warm-up."""
    model.learn(warm)
    before = model.num_timesteps
    wall, used = time.perf_counter(), time.process_time()
    model.learn(steps, reset_num_timesteps=False)
    return counted(model.num_timesteps - before, time.perf_counter() - wall, time.process_time() - used)
