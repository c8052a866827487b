"""HalfCheetah alone: steps a second of one environment whose actions are there already. Prints one JSON line.

python -m benchmarks.peers.plain_cheetah
"""

from __future__ import annotations

import argparse
import time

import gymnasium
from benchmarks.cheetah import ENVIRONMENT, STEPS
from benchmarks.protocol import counted, report

DRAWN, WARM = 500, 500


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--steps", type=int, default=STEPS)
    args = flags.parse_args()
    env = gymnasium.make(ENVIRONMENT)
    env.reset(seed=args.seed)
    env.action_space.seed(args.seed)
    actions = [env.action_space.sample() for _ in range(DRAWN)]

    def step(count: int) -> None:
        for i in range(count):
            _, _, terminated, truncated, _ = env.step(actions[i % DRAWN])
            if terminated or truncated:
                env.reset()

    step(WARM)
    wall, used = time.perf_counter(), time.process_time()
    step(args.steps)
    found = counted(args.steps, time.perf_counter() - wall, time.process_time() - used)
    packages = ("gymnasium", "mujoco", "numpy")
    report("environment", packages, what="speed", seed=args.seed, threads=1, settings="no learning", **found)


if __name__ == "__main__":
    main()
