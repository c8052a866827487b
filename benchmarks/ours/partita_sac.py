"""SAC in Partita: updates a second on transitions that are there already.

    python -m benchmarks.ours.partita_sac --threads 1

The library's own loop and recipe at its defaults, set up as the command line does, with the transitions as logged data
that nobody standardises. An update is critics, actor, temperature, target. `benchmarks/replay.py` has the workload.
Prints one JSON line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.protocol import report
from benchmarks.replay import BATCH, BLOCK, EPISODE, HIDDEN, RATE, Meter, Size, asked, limit, transitions

from partita.core import registry
from partita.core.batch import Batch
from partita.core.spaces import Box, Space
from partita.lab.train import keep_memory
from partita.loops.replay import train
from partita.loops.run import Run
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.base import Control
from partita.tasks.offline.episodes import Episodes


@dataclass(frozen=True)
class Logged(Control):
    """Synthetic episodes, and no environment."""

    episodes: Any = field(compare=False)
    size: Size = Size()

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.size.obs,)

    @property
    def action_space(self) -> Space:
        n = self.size.action
        return Box(n, (-1.0,) * n, (1.0,) * n)


class Clock(Run):
    """Tells the meter of every step of the loop, a block of updates, and stops when that has seen enough."""

    def __init__(self, seed: int, meter: Meter) -> None:
        super().__init__(seed)
        self.meter = meter

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        self.stopped = self.meter.tick(int(metrics["updates"]))


def logged(seed: int, size: Size) -> Logged:
    """The transitions as a task."""
    data = {k: torch.from_numpy(v) for k, v in transitions(seed, size).items()}
    end = data.pop("end").bool()
    never, episode = torch.zeros_like(end), torch.arange(len(end)) // EPISODE
    return Logged(Episodes(**data, terminated=never, truncated=end, episode=episode), size)


def main(*algorithms: str) -> None:
    """Measure the recipe that the command line names, or the only one."""
    flags = asked()
    if len(algorithms) > 1:
        flags.add_argument("algorithm", choices=algorithms)
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    flags.add_argument("--compile", action="store_true")
    flags.add_argument("--transitions", type=int, default=Size().transitions)
    flags.add_argument("--obs", type=int, default=Size().obs, help="numbers of an observation")
    flags.add_argument("--action", type=int, default=Size().action, help="numbers of an action")
    args = flags.parse_args()
    keep_memory()  # as the command line does for control
    limit(args.threads)
    name = getattr(args, "algorithm", algorithms[0])
    recipe = registry.recipe(name).but(batch_size=BATCH, lr=RATE, updates=BLOCK, steps=1_000_000, normalise=False)
    recipe = recipe.but(compile=args.compile)
    size = Size(args.transitions, args.obs, args.action)
    task, run = logged(args.seed, size), Clock(args.seed, Meter(name, args.seconds, size))
    settings = recipe.equip(FeedForward(hidden=(HIDDEN, HIDDEN), dtype=args.dtype), task)
    train(recipe, settings.build(task, False, run.generators["init"]), task, run)
    report(
        "partita",
        ("partita", "torch", "numpy"),
        what=name,
        seed=args.seed,
        threads=args.threads,
        settings=f"defaults, {BLOCK} updates a step of the loop, {args.dtype}" + ", compiled" * args.compile,
        transitions=len(task.episodes),
        **run.meter.rates(),
    )


if __name__ == "__main__":
    main("sac")
