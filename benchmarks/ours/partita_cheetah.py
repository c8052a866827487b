"""PPO on HalfCheetah in Partita: environment steps a second.

    python -m benchmarks.ours.partita_cheetah many                  # 16 environments x 128 steps
    python -m benchmarks.ours.partita_cheetah default --normalise   # 1 x 2048, observations and rewards normalised

The library's own loop and `ppo` recipe, as `partita train ppo --env gym:HalfCheetah-v5` sets it up, with the numbers of
`benchmarks/cheetah.py`. Prints one JSON line.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.cheetah import CLIP, DISCOUNT, ENVIRONMENT, GAE_LAMBDA, MAX_NORM, NUMBERS, RATE, STEPS, WARM
from benchmarks.ours.on_policy import speed
from benchmarks.protocol import report

from partita.parts.objective import ClippedSurrogate
from partita.parts.reward import Outcome, ScaledByReturn
from partita.tasks.control.gym import Gym


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("numbers", choices=list(NUMBERS))
    flags.add_argument("--normalise", action="store_true", help="observations and rewards")
    flags.add_argument("--compile", action="store_true")
    flags.add_argument("--vectorisation", choices=("sync", "async"), default="sync", help="async: a process each")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--warm", type=int, default=WARM)
    flags.add_argument("--steps", type=int, default=STEPS)
    args = flags.parse_args()
    what = NUMBERS[args.numbers]
    numbers: dict[str, Any] = dict(
        batch_size=what.environments, rollout=what.steps, epochs=what.epochs, minibatches=what.minibatches, lr=RATE,
        discount=DISCOUNT, gae_lambda=GAE_LAMBDA, max_grad_norm=MAX_NORM, compile=args.compile,
        objective=ClippedSurrogate(CLIP, CLIP),
        reward=(Outcome(), ScaledByReturn(discount=DISCOUNT)) if args.normalise else (Outcome(),),
    )  # fmt: skip
    task = Gym(id=ENVIRONMENT, vectorisation=args.vectorisation)
    found = speed(numbers, task, args.warm, args.steps, args.seed, args.normalise)
    settings = f"{what}, {args.vectorisation}" + ", normalised" * args.normalise + ", compiled" * args.compile
    packages = ("partita", "torch", "gymnasium", "mujoco", "numpy")
    report("partita", packages, what="speed", seed=args.seed, threads=1, settings=settings, **found)


if __name__ == "__main__":
    main()
