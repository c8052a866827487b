"""What credit by repeated states (`gigpo`, `salt`) adds to a training step, beside `grpo` in the same process.

    python benchmarks/anchors.py                 # keydoor, tiny-0.3m, every recipe in turn on one thread
    python benchmarks/anchors.py --steps 3 --out /tmp/try.json

    credit     processor time of the slot `credit` in a step
    hashing    processor time of the keys of all states that a step came through (every recipe has them)
    overhead   (credit - that of grpo + hashing) / processor time of the step                target 0.02

Processor time of this process, which a busy machine stretches least; `seconds` is the wall-clock of the step. All
numbers are medians over the steps after a warm-up, every single one is in `benchmarks/results/anchors.json`. Recipes
start from the same weights and meet the same problems. `gigpo-similar` compares the texts of states, at 0.95.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import RESULTS, call, commit  # noqa: E402

TARGET, WARM = 0.02, 2
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "gigpo": ("gigpo", {}),
    "salt": ("salt", {}),
    "gigpo-similar": ("gigpo", {"similarity": 0.95}),
}
SETTINGS: dict[str, Any] = {"level": 2, "batch_size": 8, "group_size": 8, "model": "tiny-0.3m"}


@dataclass
class Clock:
    """What was spent since it was last read."""

    credit: float = 0.0
    hashing: float = 0.0
    steps: list[dict[str, float]] = field(default_factory=list)
    began: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        self.credit = self.hashing = 0.0
        self.began = time.process_time(), time.perf_counter()

    def end(self, metrics: Mapping[str, float]) -> None:
        processor, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        row = {"processor": processor, "seconds": wall, "credit": self.credit, "hashing": self.hashing}
        self.steps.append({**row, "turns": metrics["turns"], "success": metrics["success"]})


def timed(part: Any, clock: Clock) -> Any:
    """The same credit part, its calls on the clock."""

    class Timed(type(part)):  # type: ignore[misc]
        def __call__(self, batch: Any) -> Any:
            start = time.process_time()
            out = super().__call__(batch)
            clock.credit += time.process_time() - start
            return out

    return Timed(**part.settings())


def run(name: str, steps: int, seed: int) -> list[dict[str, float]]:
    """The rows of a training's steps after the warm-up."""
    import torch

    from partita.core import registry
    from partita.loops.on_policy import train
    from partita.loops.run import Generators, Run
    from partita.parts.rollout import world
    from partita.policies.language import Language

    torch.set_num_threads(1)
    clock, plain = Clock(), world.text_key

    def text_key(state: str) -> int:
        start = time.process_time()
        key = plain(state)
        clock.hashing += time.process_time() - start
        return key

    class Timing(Run):
        def steps(self, count: int, state: Any) -> Any:
            for step in super().steps(count, state):
                clock.begin()
                yield step

        def log(self, step: int, metrics: Mapping[str, float], batch: Any = None) -> None:
            clock.end(metrics)

    key, settings = RECIPES[name]
    recipe: Any = registry.recipe(key)
    sizes = {n: SETTINGS[n] for n in ("batch_size", "group_size")}
    recipe = recipe.but(credit=timed(recipe.credit.but(**settings), clock), steps=WARM + steps, **sizes)
    task = registry.part_class("task", "keydoor")(level=SETTINGS["level"])
    policy = Language(model=SETTINGS["model"]).build(task, False, Generators(seed)["init"])
    world.text_key = text_key
    try:
        train(recipe, policy, task, Timing(seed))
    finally:
        world.text_key = plain
    return clock.steps[WARM:]


def median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description="The overhead of credit by repeated states.")
    flags.add_argument("--steps", type=int, default=12)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--out", type=Path, default=RESULTS / "anchors.json")
    args = flags.parse_args(argv)
    if args.steps < 1:
        flags.error("--steps: 1 or more")
    before = call(sys.executable, "benchmarks.machine", [])
    rows = {name: run(name, args.steps, args.seed) for name in RECIPES}
    after = call(sys.executable, "benchmarks.machine", [])
    base, cases = median(rows["grpo"], "credit"), []
    for name, found in rows.items():
        case = {n: median(found, n) for n in ("processor", "seconds", "credit", "hashing", "turns")}
        share = (case["credit"] - base + case["hashing"]) / case["processor"]
        cases.append(
            {"case": name, "recipe": RECIPES[name][0], "credit_settings": RECIPES[name][1], **case, "overhead": share,
             "target": TARGET, "met": share <= TARGET, "repeats": found}
        )  # fmt: skip
        print(f"{name:14} step {case['processor']:.3f} s, credit {1e3 * case['credit']:.2f} ms, overhead {share:.2%}")
    result = {
        "benchmark": "anchors", "date": datetime.date.today().isoformat(), "commit": commit(), "task": "keydoor",
        "settings": {**SETTINGS, "steps": args.steps, "warm": WARM, "seed": args.seed},
        "machine": {**before, "load": before["load"], "load_after": after["load"]}, "cases": cases,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"load {before['load']:.1f} before; wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
