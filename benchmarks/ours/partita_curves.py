"""SAC in Partita on a Gymnasium environment: its evaluation curve.

    python -m benchmarks.ours.partita_curves pendulum --seed 3
    python -m benchmarks.ours.partita_curves halfcheetah

The library's own loop and recipe (one environment, an update a step, temperature learned, networks of 256 x 256) at the
rate and the random steps of `benchmarks/replay.py`, which defines `area` too. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.protocol import report
from benchmarks.replay import BATCH, CURVES, DISCOUNT, HIDDEN, limit

from partita.core import registry
from partita.core.batch import Batch
from partita.lab.evaluate import evaluate
from partita.loops.replay import train
from partita.loops.run import Run
from partita.parts.temperature import TunedTemperature
from partita.policies.feed_forward import FeedForward, FeedForwardPolicy
from partita.tasks.control.gym import Gym


class Evaluations(Run):
    """Mean return of a few new episodes without noise, after every step of the loop."""

    def __init__(self, seed: int, task: Any, episodes: int) -> None:
        super().__init__(seed)
        self.task, self.episodes, self.seed = task, episodes, seed
        self.policy: FeedForwardPolicy | None = None
        self.curve: list[float] = []
        self.lived = 0

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        self.lived += int(metrics["steps"])
        seed = 1_000_000 * (1 + self.seed) + step
        self.curve.append(evaluate(self.policy, self.task, self.episodes, seed).mean)


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("curve", choices=list(CURVES))
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--steps", type=int, default=None)
    flags.add_argument("--every", type=int, default=None)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    flags.add_argument("--compile", action="store_true")
    args = flags.parse_args()
    limit(args.threads)
    what = CURVES[args.curve]
    steps, every = args.steps or what.steps, args.every or what.every
    recipe = registry.recipe("sac").but(
        lr=what.lr,
        temperature=TunedTemperature(lr=what.lr),
        start=every,
        updates=every,
        steps=steps // every - 1,
        batch_size=BATCH,
        discount=DISCOUNT,
        capacity=steps,
        compile=args.compile,
    )
    task = Gym(id=what.environment)
    run = Evaluations(args.seed, task, what.episodes)
    settings = recipe.equip(FeedForward(hidden=(HIDDEN, HIDDEN), dtype=args.dtype), task)
    run.policy = settings.build(task, False, run.generators["init"])
    start = time.perf_counter()
    train(recipe, run.policy, task, run)
    seconds = time.perf_counter() - start
    if run.lived != steps or len(run.curve) != steps // every - 1:
        raise SystemExit(f"{run.lived} steps, {len(run.curve)} evaluations: not as agreed")
    report(
        "partita",
        ("partita", "torch", "gymnasium", "numpy"),
        what=args.curve,
        seed=args.seed,
        threads=args.threads,
        settings=f"{what}, {args.dtype}" + ", compiled" * args.compile,
        area=what.score(run.curve),
        last=run.curve[-1],
        curve=run.curve,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
