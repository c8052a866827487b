"""PPO on HalfCheetah in Stable-Baselines3: environment steps a second.

    python -m benchmarks.peers.sb3_cheetah default     # its defaults: one environment x 2048 steps
    python -m benchmarks.peers.sb3_cheetah many        # 16 environments x 128 steps

Its `PPO` at its defaults but for the numbers of `benchmarks/cheetah.py`, and one thread. Prints one JSON line.
"""

from __future__ import annotations

import argparse

import torch
from benchmarks.cheetah import ENVIRONMENT, NUMBERS, STEPS, WARM
from benchmarks.peers.sb3_loop import learnt
from benchmarks.protocol import report
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("numbers", choices=list(NUMBERS))
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--warm", type=int, default=WARM)
    flags.add_argument("--steps", type=int, default=STEPS)
    args = flags.parse_args()
    torch.set_num_threads(1)
    what = NUMBERS[args.numbers]
    model = PPO(
        "MlpPolicy",
        make_vec_env(ENVIRONMENT, what.environments, seed=args.seed),
        n_steps=what.steps,
        n_epochs=what.epochs,
        batch_size=what.batch // what.minibatches,
        seed=args.seed,
        device="cpu",
    )
    found = learnt(model, args.warm, args.steps)
    packages = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
    report("sb3", packages, what="speed", seed=args.seed, threads=1, settings=str(what), **found)


if __name__ == "__main__":
    main()
