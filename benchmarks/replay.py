"""The benchmarks of learning from replay: what every side of `sac`, `offline` and their curves does.

    python benchmarks/run.py sac             # SAC updates a second: Partita, SB3, SBX, two loops of our own writing
    python benchmarks/run.py offline         # TD3+BC and IQL updates a second: Partita, d3rlpy, a loop in eager torch
    python benchmarks/run.py sac-curves      # evaluation curves of SAC: Partita, SB3
    python benchmarks/run.py offline-curves  # evaluation curves of TD3+BC and IQL: bfloat16 and float32

**Speed.** Observations of 17 and actions of 6 numbers (HalfCheetah's), networks with two hidden layers of 256 and ReLU,
two critics, batches of 256 drawn uniformly from 200,000 transitions that are there from the start: no environment is
stepped. An update is one draw and one gradient step of every network, target included (of TD3+BC's actor and targets,
one in two updates). A process has as many cores as `threads` says and no more. After the updates it multiplies
matrices on the same cores:

    share = updates_per_second * flops / (1e9 * matmul_gflops)

flops counts what no implementation can spare, the matrix products; B rows, |f| = sum of inputs * outputs of the layers
of f, |f|_- the same without the first layer, |f|_a with no more than the actions' rows of the first:

    forward 2 B |f|      gradient by weights 2 B |f|      by inputs 2 B |f|_-, by an action 2 B |f|_a

    SAC      2 B [ |pi| + 2|q|                            target: action, both critics
                   + 2 (2|q| + |q|_-)                     both critics forward and back
                   + (2|pi| + |pi|_-) + 2 (|q| + |q|_a)   actor forward and back, through both critics
                 ]
    TD3+BC   2 B [ |pi| + 2|q| + 2 (2|q| + |q|_-)         target and critics, as above
                   + (2|pi| + |pi|_- + |q| + |q|_a) / 2   actor, through the first critic, in one of two updates
                 ]
    IQL      2 B [ 2|q| + |v| + 2 (2|q| + |q|_-)          target critics at (s, a), v(s'), critics
                   + (2|v| + |v|_-) + (2|pi| + |pi|_-)    value, actor
                 ]

with |pi| = 17*256 + 256*256 + 256*12 for SAC (mean and deviation; else 256*6), |q| = 23*256 + 256*256 + 256 and
|v| = 17*256 + 256*256 + 256: 577.1 MFLOP for SAC, 413.5 for TD3+BC, 536.5 for IQL.

**Curves.** Both sides: one environment, SAC at the settings of `CURVES`, an update a step. `area` is the mean return
of the evaluations (actions without noise, new episodes each time), on the scale where 0 is uniformly random actions and
1 is `good`. Not worse means that the 95% interval of the mean difference over paired seeds (Student's) reaches 0.

**Curves from logged data.** TD3+BC and IQL at their defaults on recordings of native environments (`LOGGED`), which are
the same for every seed; 1 is the scripted expert.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.jobs import OURS, THEIRS, Limit, Measure, Side, Target

if TYPE_CHECKING:
    import numpy as np

OBS, ACTION, HIDDEN, BATCH = 17, 6, 256, 256
TRANSITIONS, EPISODE = 200_000, 1_000
RATE, DISCOUNT, TAU = 3e-4, 0.99, 0.005
BLOCK = 64  # updates between two looks at the clock
THREADS = {"one-thread": 1, "two-threads": 2}


@dataclass(frozen=True)
class Size:
    """How much there is to learn from: transitions, numbers of an observation, numbers of an action."""

    transitions: int = TRANSITIONS
    obs: int = OBS
    action: int = ACTION


def transitions(seed: int, size: Size = Size()) -> dict[str, np.ndarray]:
    """Synthetic steps of episodes of equal length: obs, next_obs (N, 17), action (N, 6), reward, end (N,), float32.

    Observations are a slowly forgetting linear system that the actions push; `end` marks the last step of an episode.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    episodes = size.transitions // EPISODE
    action = generator.uniform(-0.95, 0.95, (EPISODE, episodes, size.action)).astype(np.float32)
    push = generator.normal(0, 0.3, (size.action, size.obs)).astype(np.float32)
    noise = generator.normal(0, 0.3, (EPISODE, episodes, size.obs)).astype(np.float32)
    states = np.zeros((EPISODE + 1, episodes, size.obs), np.float32)
    for t in range(EPISODE):
        states[t + 1] = 0.9 * states[t] + action[t] @ push + noise[t]
    reward = states[1:, :, 0] - 0.1 * np.square(action).sum(-1)
    end = np.zeros((EPISODE, episodes), np.float32)
    end[-1] = 1.0
    parts = dict(obs=states[:-1], next_obs=states[1:], action=action, reward=reward, end=end)
    return {k: np.ascontiguousarray(v.swapaxes(0, 1)).reshape(size.transitions, *v.shape[2:]) for k, v in parts.items()}


def flops(algorithm: str, size: Size = Size()) -> int:
    """Floating-point operations of the matrix products in an update of sac, td3_bc or iql (formulas above)."""
    middle = HIDDEN * HIDDEN

    def products(inputs: int, outputs: int) -> int:
        return inputs * HIDDEN + middle + HIDDEN * outputs

    actions = size.action * (2 if algorithm == "sac" else 1)
    actor, actor_back = products(size.obs, actions), products(0, actions)
    critic, critic_back = products(size.obs + size.action, 1), products(0, 1)
    by_action = products(size.action, 1)
    value, value_back = products(size.obs, 1), products(0, 1)
    critics = 2 * (2 * critic + critic_back)
    learn_actor = 2 * actor + actor_back
    count = {
        "sac": actor + 2 * critic + critics + learn_actor + 2 * (critic + by_action),
        "td3_bc": actor + 2 * critic + critics + (learn_actor + critic + by_action) / 2,
        "iql": 2 * critic + value + critics + 2 * value + value_back + learn_actor,
    }[algorithm]
    return round(2 * BATCH * count)


def asked() -> argparse.ArgumentParser:
    """The flags of a script that counts updates a second."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--seconds", type=float, default=4.0)
    flags.add_argument("--seed", type=int, default=0)
    return flags


def limit(threads: int) -> None:
    """Keep this process, and the threads that it will start, on as many cores; call it before the first computation."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < threads:
            raise SystemExit(f"--threads {threads}: this process may use {len(cores)} cores")
        os.sched_setaffinity(0, cores[-threads:])
    import torch

    torch.set_num_threads(threads)


class Meter:
    """Updates a second: told of every block of updates that is over, says when there have been enough.

    The first `WARM` blocks do not count, the rest goes on for at least `seconds`.
    """

    WARM = 2

    def __init__(self, algorithm: str, seconds: float, size: Size = Size()) -> None:
        self.flops, self.seconds, self.blocks, self.count = flops(algorithm, size), seconds, 0, 0
        self.processor = self.start = self.passed = self.used = 0.0

    def tick(self, updates: int) -> bool:
        """A block of as many updates is over; whether the measurement is."""
        self.blocks += 1
        if self.blocks > self.WARM:
            self.count += updates
        else:
            self.processor, self.start = time.process_time(), time.perf_counter()
        self.passed, self.used = time.perf_counter() - self.start, time.process_time() - self.processor
        return self.passed >= self.seconds

    def rates(self) -> dict[str, float]:
        """What was measured; multiplies matrices now, to compare."""
        from benchmarks.machine import matmul_gflops

        gflops, matmul = self.count * self.flops / self.passed / 1e9, matmul_gflops()
        return {
            "updates": self.count,
            "updates_per_second": self.count / self.passed,
            "microseconds": 1e6 * self.passed / self.count,
            "cpu_seconds": self.used / self.count,
            "gflops": gflops,
            "matmul_gflops": matmul,
            "share": gflops / matmul,
        }


def speed(algorithm: str, update: Callable[[int], object], seconds: float) -> dict[str, float]:
    """The rates of update(n), which carries out n updates and returns when they are done."""
    meter, over = Meter(algorithm, seconds), False
    while not over:
        update(BLOCK)
        over = meter.tick(BLOCK)
    return meter.rates()


@dataclass(frozen=True)
class Curve:
    """What a learning curve is taken of.

    The first `every` steps are random; after each `every` more, the mean return of `episodes`. random, good: the
    returns that score 0 and 1.
    """

    environment: str
    steps: int
    every: int
    episodes: int
    lr: float
    random: float
    good: float

    def score(self, returns: Sequence[float]) -> float:
        """Mean of the evaluations on the scale from `random` to `good`."""
        return (sum(returns) / len(returns) - self.random) / (self.good - self.random)


CURVES = {
    "pendulum": Curve("Pendulum-v1", 6_000, 500, 10, 1e-3, random=-1_250.0, good=-150.0),
    "halfcheetah": Curve("HalfCheetah-v5", 15_000, 1_000, 3, 3e-4, random=-275.0, good=3_000.0),
}


@dataclass(frozen=True)
class Logged:
    """What a learning curve from logged data is taken of.

    size: steps of a recording by `behaviour`. After each `every` updates, the mean score of `episodes`.
    """

    algorithm: str
    env: str
    behaviour: str = "random:0.2,expert:0.8"
    size: int = 20_000
    updates: int = 4_000
    every: int = 500
    episodes: int = 50
    lr: float = 1e-3


LOGGED = {
    f"{algorithm}-{env}": Logged(algorithm, env)
    for algorithm in ("td3_bc", "iql")
    for env in ("pendulum", "mountain_car_continuous")
}


@dataclass(frozen=True)
class NoWorse(Target):
    """Ours is not worse than theirs on paired seeds: the interval of the difference reaches 0."""


FIELDS = ("updates_per_second", "share", "cpu_seconds", "matmul_gflops", "peak_mb")
OURS_AS = ("partita", "partita-bf16", "partita-compiled", "partita-compiled-bf16")
BRIEFLY = ("--seconds", "1")


def _side(name: str, environment: str | None, script: str, *args: str, quick: tuple[str, ...] = BRIEFLY) -> Side:
    module = f"{OURS if environment is None else THEIRS}.{script}"
    return Side(name, environment, module, args, quick, {"JAX_PLATFORMS": "cpu"})


def _ours(script: str, *args: str) -> tuple[Side, ...]:
    settings: tuple[tuple[str, ...], ...] = ((), ("--dtype", "bfloat16"))
    settings += tuple((*flags, "--compile") for flags in settings)
    return tuple(_side(name, None, script, *args, *flags) for name, flags in zip(OURS_AS, settings, strict=True))


def _sac(name: str, threads: int) -> Measure:
    args = ("--threads", str(threads))
    sides = (
        *_ours("partita_sac", *args),
        _side("sb3", "sb3", "sb3_sac", *args),
        _side("sbx", "sbx", "sbx_sac", *args),
        _side("sbx-64", "sbx", "sbx_sac", *args, "--each", "64"),
        _side("cleanrl-style", "sb3", "cleanrl_style_sac", *args),
        _side("jax", "sbx", "jax_sac", *args),
        _side("jax-64", "sbx", "jax_sac", *args, "--each", "64"),
    )
    return Measure(name, FIELDS, sides)


def _offline(algorithm: str, name: str, threads: int) -> Measure:
    args = (algorithm, "--threads", str(threads))
    sides = (
        *_ours("partita_offline", *args),
        _side("d3rlpy", "d3rlpy", "d3rlpy_offline", *args),
        _side("corl-style", "d3rlpy", "corl_style_offline", *args),
    )
    return Measure(f"{algorithm}-{name}", FIELDS, sides)


def _curves(name: str) -> Measure:
    quick = ("--steps", "600", "--every", "200")
    sides = (
        _side("partita", None, "partita_curves", name, quick=quick),
        _side("partita-bf16", None, "partita_curves", name, "--dtype", "bfloat16", quick=quick),
        _side("partita-compiled-bf16", None, "partita_curves", name, "--dtype", "bfloat16", "--compile", quick=quick),
        _side("sb3", "sb3", "sb3_curves", name, quick=quick),
    )
    return Measure(name, ("area", "last", "seconds", "peak_mb"), sides)


def _logged(name: str) -> Measure:
    quick = ("--updates", "200", "--every", "100")
    sides = (
        _side("partita", None, "partita_logged", name, quick=quick),
        _side("partita-compiled-bf16", None, "partita_logged", name, "--dtype", "bfloat16", "--compile", quick=quick),
    )
    return Measure(name, ("area", "last", "seconds", "peak_mb"), sides)


BENCHMARKS = {
    "sac": tuple(_sac(name, threads) for name, threads in THREADS.items()),
    "offline": tuple(
        _offline(algorithm, name, threads) for algorithm in ("td3_bc", "iql") for name, threads in THREADS.items()
    ),
    "sac-curves": tuple(_curves(name) for name in CURVES),
    "offline-curves": tuple(_logged(name) for name in LOGGED),
}

TARGETS: dict[str, tuple[Target | Limit, ...]] = {
    "sac": tuple(
        Target(name, "updates_per_second", ours, peer, least=least)
        for name in THREADS
        for ours in OURS_AS
        for peer, least in (
            ("sb3", 2.0),
            ("cleanrl-style", 2.0),
            ("sbx", 1.2),
            ("sbx-64", 1.2),
            ("jax", 1.0),
            ("jax-64", None),
        )
    )
    + tuple(Limit(name, "share", ours, least=0.7) for name in THREADS for ours in OURS_AS)
    + tuple(Target("one-thread", "cpu_seconds", "partita", peer) for peer in ("sb3", "sbx", "sbx-64")),
    "offline": tuple(
        Target(measure.name, "updates_per_second", ours, peer, least=3.0)
        for measure in BENCHMARKS["offline"]
        for ours in OURS_AS
        for peer in ("d3rlpy", "corl-style")
    ),
    "sac-curves": tuple(
        NoWorse(name, "area", ours, theirs)
        for name in CURVES
        for ours, theirs in (
            ("partita", "sb3"),
            ("partita-bf16", "sb3"),
            ("partita-compiled-bf16", "sb3"),
            ("partita-bf16", "partita"),
            ("partita-compiled-bf16", "partita"),
        )
    ),
    "offline-curves": tuple(NoWorse(name, "area", "partita-compiled-bf16", "partita") for name in LOGGED),
}
