"""TD3+BC and IQL in Partita on a recording of a native environment: the evaluation curve.

    python -m benchmarks.ours.partita_logged td3_bc-pendulum --seed 3
    python -m benchmarks.ours.partita_logged iql-mountain_car_continuous --dtype bfloat16 --compile

The library's own loop and recipes at their defaults, networks of 256 x 256; `benchmarks/replay.py` has the recordings
and says what `area` is. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

from benchmarks.ours.partita_curves import Evaluations
from benchmarks.protocol import report
from benchmarks.replay import BATCH, HIDDEN, LOGGED, limit

from partita.core import registry
from partita.core.batch import Batch
from partita.lab.train import keep_memory
from partita.loops.replay import train
from partita.policies.feed_forward import FeedForward
from partita.tasks.offline.task import Offline


class Scores(Evaluations):
    """Evaluations on the scale of the recording's task."""

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        super().log(step, {"steps": 0.0}, batch)
        self.curve[-1] = float(self.task.normalised(self.curve[-1]))


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("curve", choices=list(LOGGED))
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--updates", type=int, default=None)
    flags.add_argument("--every", type=int, default=None)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    flags.add_argument("--compile", action="store_true")
    args = flags.parse_args()
    keep_memory()
    limit(args.threads)
    what = LOGGED[args.curve]
    updates, every = args.updates or what.updates, args.every or what.every
    task = Offline(env=what.env, behaviour=what.behaviour, size=what.size)
    recipe = registry.recipe(what.algorithm).but(
        lr=what.lr, updates=every, steps=updates // every, batch_size=BATCH, compile=args.compile
    )
    run = Scores(args.seed, task, what.episodes)
    settings = recipe.equip(FeedForward(hidden=(HIDDEN, HIDDEN), dtype=args.dtype), task)
    run.policy = settings.build(task, False, run.generators["init"])
    start = time.perf_counter()
    train(recipe, run.policy, task, run)
    report(
        "partita",
        ("partita", "torch", "numpy"),
        what=args.curve,
        seed=args.seed,
        threads=args.threads,
        settings=f"{what}, {args.dtype}" + ", compiled" * args.compile,
        area=statistics.fmean(run.curve),
        last=run.curve[-1],
        curve=run.curve,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
