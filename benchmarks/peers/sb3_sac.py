"""SAC in Stable-Baselines3: updates a second on transitions that are there already.

    python -m benchmarks.peers.sb3_sac --threads 1               # one update a call of `train`, as after every step
    python -m benchmarks.peers.sb3_sac --threads 1 --each 64

Its own `SAC.train` at its defaults, which draws from its `ReplayBuffer` in NumPy. An update is one of its gradient
steps: temperature, both critics, actor, target. `benchmarks/replay.py` has the workload. Prints one JSON line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from benchmarks.protocol import report
from benchmarks.replay import ACTION, BATCH, HIDDEN, OBS, TRANSITIONS, asked, limit, speed, transitions
from stable_baselines3.common.logger import Logger


class Shapes(gymnasium.Env):
    """An environment that is asked for nothing but its spaces."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)


def filled(algorithm: Callable[..., Any], seed: int) -> Any:
    """The algorithm at its defaults, with a buffer that holds the transitions."""
    nets = dict(net_arch=[HIDDEN, HIDDEN])
    model = algorithm("MlpPolicy", Shapes(), buffer_size=TRANSITIONS, batch_size=BATCH, policy_kwargs=nets, seed=seed)
    model.set_logger(Logger(None, []))
    data, buffer = transitions(seed), model.replay_buffer
    buffer.observations[:, 0], buffer.next_observations[:, 0] = data["obs"], data["next_obs"]
    buffer.actions[:, 0], buffer.rewards[:, 0] = data["action"], data["reward"]
    buffer.dones[:, 0] = buffer.timeouts[:, 0] = data["end"]
    buffer.full = True
    return model


def main(side: str, algorithm: Callable[..., Any], packages: tuple[str, ...], done: Callable[[Any], Any]) -> None:
    """Measure an algorithm with the interface of SB3; `done` waits until its last update is over."""
    flags = asked()
    flags.add_argument("--each", type=int, default=1, help="updates in a call of `train` (its gradient_steps)")
    args = flags.parse_args()
    limit(args.threads)
    model = filled(algorithm, args.seed)

    def update(n: int) -> None:
        for _ in range(n // args.each):
            model.train(gradient_steps=args.each, batch_size=BATCH)
        done(model)

    found = speed("sac", update, args.seconds)
    if model._n_updates < found["updates"]:
        raise SystemExit(f"{model._n_updates} updates: not as agreed")
    settings = f"defaults, {args.each} updates a call"
    report(side, packages, what="sac", seed=args.seed, threads=args.threads, settings=settings, **found)


if __name__ == "__main__":
    from stable_baselines3 import SAC

    main("sb3", SAC, ("stable-baselines3", "torch", "numpy"), lambda model: None)
