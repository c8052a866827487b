"""PPO on CartPole-v1 in Stable-Baselines3: environment steps a second, or time until it is solved.

    python -m benchmarks.peers.sb3_cartpole speed              # default PPO settings, 8 environments
    python -m benchmarks.peers.sb3_cartpole solve --seed 3     # tuned settings of its own model zoo

Prints one JSON line. `solved` is the moment (seconds since the epoch) at which the mean return of the last 100
finished episodes was first >= 475; whoever started this process knows when that was.
"""

from __future__ import annotations

import argparse
import time

import torch
from benchmarks.peers.sb3_loop import learnt
from benchmarks.protocol import report
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

ENVIRONMENTS = 8

# The tuned CartPole-v1 settings published with the library's model zoo; its defaults solve the task later.
TUNED = dict(n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0)
LEARNING_RATE, CLIP, HORIZON = 1e-3, 0.2, 100_000


class UntilSolved(BaseCallback):
    """Stop as soon as the last 100 finished episodes have a mean return of at least `target`."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target, self.recent = target, 0.0
        self.solved: float | None = None

    def _on_step(self) -> bool:
        episodes = self.model.ep_info_buffer
        if any(self.locals["dones"]) and len(episodes) == 100:
            self.recent = sum(e["r"] for e in episodes) / 100
            if self.recent >= self.target:
                self.solved = time.time()
                return False
        return True


def speed(algorithm: type[PPO], warm: int, steps: int, seed: int) -> dict:
    """Environment steps a second of `learn` (collecting and updating) at default settings, after a warm-up."""
    envs = make_vec_env("CartPole-v1", ENVIRONMENTS, seed=seed)
    model = algorithm("MlpPolicy", envs, seed=seed, device="cpu")
    found = learnt(model, warm, steps)
    settings = f"defaults: {ENVIRONMENTS} envs x {model.n_steps}, {model.n_epochs} epochs, batch {model.batch_size}"
    return {**found, "settings": settings}


def solve(algorithm: type[PPO], target: float, limit: int, seed: int) -> dict:
    """Train with the tuned settings until the last 100 episodes average `target`, at most `limit` steps."""
    envs = make_vec_env("CartPole-v1", ENVIRONMENTS, seed=seed)

    # Its zoo decays both to zero over 1e5 steps; a run that goes on past that keeps a small rate.
    def linear(initial: float):
        return lambda left: initial * max(1.0 - (1.0 - left) * limit / HORIZON, 0.05)

    schedules = dict(learning_rate=linear(LEARNING_RATE), clip_range=linear(CLIP))
    model = algorithm("MlpPolicy", envs, seed=seed, device="cpu", **TUNED, **schedules)
    watch = UntilSolved(target)
    model.learn(limit, callback=watch)
    settings = f"zoo: {ENVIRONMENTS} envs, {TUNED}, lr lin {LEARNING_RATE}, clip lin {CLIP} over {HORIZON}"
    return {"steps": model.num_timesteps, "solved": watch.solved, "last_100": watch.recent, "settings": settings}


def main(library: str, algorithm: type[PPO], *others: str) -> None:
    """others: packages whose versions are reported beside those that every user of `algorithm` has."""
    flags = argparse.ArgumentParser()
    flags.add_argument("what", choices=["speed", "solve"])
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--threads", type=int, default=0, help="0: leave torch's own choice")
    flags.add_argument("--warm", type=int, default=32_768)
    flags.add_argument("--steps", type=int, default=65_536)
    flags.add_argument("--target", type=float, default=475.0)
    flags.add_argument("--limit", type=int, default=300_000)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "speed":
        result = speed(algorithm, args.warm, args.steps, args.seed)
    else:
        result = solve(algorithm, args.target, args.limit, args.seed)
    threads = torch.get_num_threads()
    packages = (*others, "stable-baselines3", "torch", "gymnasium", "numpy")
    report(library, packages, what=args.what, seed=args.seed, threads=threads, **result)


if __name__ == "__main__":
    main("sb3", PPO)
