"""The on-policy loop on the clock: what the scripts of PPO in this folder share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.protocol import counted

from partita.core import registry
from partita.core.batch import Batch
from partita.lab.train import keep_memory
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.parts.credit import GAE
from partita.parts.rollout import Segments


class Clock(Run):
    """Notes the wall and processor times at the end of each step of the loop."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.ends: list[float] = []
        self.processor: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())


def recipe_of(batch_size: int, rollout: int, discount: float = 0.99, gae_lambda: float = 0.95, **numbers: Any) -> Any:
    """The library's `ppo` recipe with other numbers."""
    credit = GAE(discount=discount, gae_lambda=gae_lambda)
    return registry.recipe("ppo").but(rollout=Segments(steps=rollout), batch_size=batch_size, credit=credit, **numbers)


def speed(
    numbers: Mapping[str, Any], task: Any, warm: int, steps: int, seed: int, normalise: bool = False, threads: int = 1
) -> dict[str, Any]:
    """Environment steps a second of the loop (collecting and updating), after a warm-up; at least `steps` of them."""
    torch.set_num_threads(threads)
    keep_memory()  # as the command line does for control
    size = numbers["batch_size"] * numbers["rollout"]
    first, total = -(-warm // size), -(-warm // size) + -(-steps // size)
    run = Clock(seed)
    settings = registry.part_class("policy", "actor_critic")(normalise=normalise)
    policy = settings.build(task, True, run.generators["init"])
    train(recipe_of(**numbers, steps=total), policy, task, run)
    passed = [(ends[-1] - ends[first - 1]) for ends in (run.ends, run.processor)]
    return counted((total - first) * size, *passed)
