"""PPO on CartPole in Partita: environment steps a second, or time until it is solved.

    python -m benchmarks.ours.partita_cartpole speed            # 64 environments x 128 steps, 4 epochs of 8 minibatches
    python -m benchmarks.ours.partita_cartpole speed --as sb3   # that library's defaults: 8 x 2048, 10 epochs of 256
    python -m benchmarks.ours.partita_cartpole speed --environments 4096
    python -m benchmarks.ours.partita_cartpole solve --seed 3

Prints one JSON line. `solved` is the moment (seconds since the epoch) at which the whole run was over and written to
its folder: it stops once the mean return of the last 100 finished episodes is >= 475.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from benchmarks.protocol import report

SPEED: dict[str, dict[str, Any]] = {
    "rejax": dict(batch_size=64, rollout=128, epochs=4, minibatches=8, lr=1e-3),
    "sb3": dict(batch_size=8, rollout=2048, epochs=10, minibatches=256, lr=3e-4),
}
# Searched on seeds 0 to 4, as rejax's were, which are slower with these numbers; the harness measures on others.
SOLVE: dict[str, Any] = dict(
    batch_size=128, rollout=32, epochs=4, minibatches=4, lr=5e-3, discount=0.98, gae_lambda=0.95
)


def speed(
    name: str, changes: dict[str, int | None], compile: bool, threads: int, warm: int, steps: int, seed: int
) -> dict[str, Any]:
    """Environment steps a second, of settings by name; `changes` to a batch leave minibatches as large."""
    from benchmarks.ours import on_policy

    from partita.core import registry

    numbers = SPEED[name]
    changed = {**numbers, **{k: v for k, v in changes.items() if v is not None}, "compile": compile}
    times = changed["batch_size"] * changed["rollout"] / (numbers["batch_size"] * numbers["rollout"])
    changed["minibatches"] = max(1, round(numbers["minibatches"] * times))
    found = on_policy.speed(changed, registry.part_class("task", "cartpole")(), warm, steps, seed, threads=threads)
    return {**found, "settings": f"{name}: {changed}"}


def solve(target: float, limit: int, seed: int) -> dict[str, Any]:
    """A whole run with its folder, until the last 100 episodes average `target` or `limit` steps were taken."""
    from benchmarks.ours.on_policy import recipe_of

    from partita.lab.train import train

    size = SOLVE["batch_size"] * SOLVE["rollout"]
    recipe = recipe_of(**SOLVE, steps=limit // size)
    with tempfile.TemporaryDirectory() as folder:
        found = train(recipe, "cartpole", out=folder + "/run", until=target, eval_size=0, seed=seed)
        now = time.time()
    last = found.metrics[-1]
    solved = now if last["return"] >= target and last["window"] >= 100 else None
    steps = len(found.metrics) * size
    return {"steps": steps, "solved": solved, "last_100": last["return"], "settings": str(SOLVE)}


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("what", choices=["speed", "solve"])
    flags.add_argument("--as", dest="name", choices=list(SPEED), default="rejax")
    flags.add_argument("--environments", type=int, default=None, help="other than the settings'")
    flags.add_argument("--rollout", type=int, default=None, help="steps of each, other than the settings'")
    flags.add_argument("--compile", action="store_true")
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--warm", type=int, default=32_768)
    flags.add_argument("--steps", type=int, default=262_144)
    flags.add_argument("--target", type=float, default=475.0)
    flags.add_argument("--limit", type=int, default=1_000_000)
    args = flags.parse_args()
    if args.what == "speed":
        changes = {"batch_size": args.environments, "rollout": args.rollout}
        result = speed(args.name, changes, args.compile, args.threads, args.warm, args.steps, args.seed)
    else:
        result = solve(args.target, args.limit, args.seed)
    report("partita", ("partita", "torch", "numpy"), what=args.what, seed=args.seed, threads=args.threads, **result)


if __name__ == "__main__":
    main()
