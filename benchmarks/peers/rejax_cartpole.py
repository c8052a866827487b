"""PPO on CartPole-v1 in rejax: environment steps a second, or time until it is solved.

    python -m benchmarks.peers.rejax_cartpole speed             # 64 environments x 128 steps, 4 epochs of 8 minibatches
    python -m benchmarks.peers.rejax_cartpole solve --seed 3    # the fastest working settings that we found

Prints one JSON line. `solved` is the moment (seconds since the epoch) at which the mean return of the last 100
finished episodes was known to be >= 475; compilation lies before it. The library reports no training returns, so
they are followed inside the compiled loop, which costs it next to nothing and spares it its evaluations.
"""

from __future__ import annotations

import argparse
import time

import jax
from benchmarks.protocol import report
from jax import numpy as jnp
from rejax import PPO
from rejax.algos.algorithm import register_init

SPEED = dict(num_envs=64, num_steps=128, num_epochs=4, num_minibatches=8, learning_rate=1e-3)

# Settings by name. "shipped" is the library's own CartPole file; the others were searched by hand for an early solve.
SOLVE = {
    "shipped": dict(
        num_envs=5, num_steps=100, num_epochs=5, num_minibatches=5, learning_rate=7.5e-4, gae_lambda=0.95,
        ent_coef=0.01, max_grad_norm=0.5,
    ),
    "zoo": dict(
        num_envs=8, num_steps=32, num_epochs=20, num_minibatches=1, learning_rate=1e-3, gae_lambda=0.8,
        gamma=0.98, ent_coef=0.0, max_grad_norm=0.5,
    ),
    "tuned": dict(
        num_envs=16, num_steps=32, num_epochs=4, num_minibatches=4, learning_rate=2e-3, gae_lambda=0.9,
        gamma=0.98, ent_coef=0.0, max_grad_norm=0.5,
    ),
}  # fmt: skip
BEST = "tuned"


class Watched(PPO):
    """PPO that keeps the returns of the last 100 finished training episodes, and how many have finished."""

    @register_init
    def initialize_watch(self, rng):
        return {"recent": jnp.zeros(100), "finished": 0, "running": jnp.zeros(self.num_envs)}

    def collect_trajectories(self, ts):
        ts, seen = super().collect_trajectories(ts)

        def step(running, now):
            total = running + now.reward.reshape(-1)
            return jnp.where(now.done, 0.0, total), total

        running, totals = jax.lax.scan(step, ts.running, seen)
        ended = jnp.concatenate([jnp.ones(100, bool), seen.done.reshape(-1)])
        values = jnp.concatenate([ts.recent, totals.reshape(-1)])
        order, _ = jax.lax.top_k(jnp.where(ended, jnp.arange(len(ended)), -1), 100)
        finished = ts.finished + seen.done.sum()
        return ts.replace(recent=values[order][::-1], finished=finished, running=running), seen


def agent(activation: str, **settings) -> Watched:
    """The algorithm with two hidden layers of 64."""
    nets = {"hidden_layer_sizes": (64, 64), "activation": activation}
    return Watched.create(env="CartPole-v1", agent_kwargs=nets, **settings)


def speed(iterations: int, seed: int) -> dict:
    """Steps a second of compiled training iterations, all in one call, after one such call."""
    algo = agent("tanh", **SPEED)

    @jax.jit
    def many(ts):
        return jax.lax.fori_loop(0, iterations, lambda _, ts: algo.train_iteration(ts), ts)

    ts = jax.block_until_ready(many(jax.jit(algo.init_state)(jax.random.PRNGKey(seed))))
    start = time.perf_counter()
    jax.block_until_ready(many(ts))
    seconds = time.perf_counter() - start
    steps = iterations * algo.num_envs * algo.num_steps
    return {"steps": steps, "seconds": seconds, "steps_per_second": steps / seconds, "settings": str(SPEED)}


def solve(name: str, target: float, limit: int, seed: int) -> dict:
    """Initialise and train in one compiled call that ends when the last 100 episodes average `target`."""
    algo = agent("tanh", **SOLVE[name])

    @jax.jit
    def until_solved(key):
        def going(ts):
            done = (ts.finished >= 100) & (ts.recent.mean() >= target)
            return ~done & (ts.global_step < limit)

        return jax.lax.while_loop(going, algo.train_iteration, algo.init_state(key))

    ts = jax.block_until_ready(until_solved(jax.random.PRNGKey(seed)))
    last = float(ts.recent.mean())
    solved = time.time() if last >= target else None
    settings = f"{name}: {SOLVE[name]}"
    return {"steps": int(ts.global_step), "solved": solved, "last_100": last, "settings": settings}


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("what", choices=["speed", "solve"])
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--iterations", type=int, default=64)
    flags.add_argument("--settings", choices=list(SOLVE), default=BEST)
    flags.add_argument("--target", type=float, default=475.0)
    flags.add_argument("--limit", type=int, default=1_000_000)
    args = flags.parse_args()
    if args.what == "speed":
        result = speed(args.iterations, args.seed)
    else:
        result = solve(args.settings, args.target, args.limit, args.seed)
    report("rejax", ("rejax", "jax", "gymnax", "flax"), what=args.what, seed=args.seed, **result)


if __name__ == "__main__":
    main()
