"""The benchmark of PPO on a simulator: what every side of `halfcheetah` does.

    python benchmarks/run.py halfcheetah     # environment steps a second: Partita, SB3, a plain loop in eager torch

HalfCheetah-v5 (MuJoCo): observations of 17 and actions of 6 numbers, episodes of 1,000 steps. A batch is always 2,048
steps; two networks of 64 x 64 with tanh, a Gaussian whose deviation does not depend on the state, whitened advantages,
one thread, and all environments in the process that learns. Counted are the steps of the whole loop, collecting and
updating, after a warm-up.

    numbers     environments x steps    epochs    minibatches       learns from a step
    `DEFAULT`        1 x 2048             10       32 of 64          10 times, in 320 updates a batch
    `MANY`          16 x 128              10        8 of 256         10 times, in 80 updates a batch

`DEFAULT` is what SB3 and CleanRL have as defaults, `MANY` how Partita is meant to be used: environments in batches, and
minibatches as much larger as keep a core busy. Sides that share numbers do the same work; `*-16` tells how much of the
difference is a matter of numbers. normalised: observations and rewards by running statistics, as CleanRL's wrappers do.

`environment` steps one environment with actions that were drawn beforehand, and nothing else: no loop that keeps to one
process can be faster. cpu_microseconds: processor time of one step of an environment, of which this floor is a part.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.jobs import OURS, THEIRS, Measure, Side, Target

ENVIRONMENT = "HalfCheetah-v5"
RATE, DISCOUNT, GAE_LAMBDA, CLIP, VALUE_WEIGHT, MAX_NORM = 3e-4, 0.99, 0.95, 0.2, 0.5, 0.5
WARM, STEPS = 4_096, 10_240


@dataclass(frozen=True)
class Numbers:
    """Environments and the steps of each that make a batch; passes over it, and updates in each pass."""

    environments: int
    steps: int
    epochs: int
    minibatches: int

    @property
    def batch(self) -> int:
        """Steps of a batch."""
        return self.environments * self.steps

    def __str__(self) -> str:
        size = self.batch // self.minibatches
        return f"{self.environments} x {self.steps}, {self.epochs} epochs of {self.minibatches} minibatches of {size}"


NUMBERS = {"default": Numbers(1, 2048, 10, 32), "many": Numbers(16, 128, 10, 8)}

_QUICK = ("--warm", "2048", "--steps", "2048")


def _side(name: str, environment: str | None, script: str, *args: str) -> Side:
    return Side(name, environment, f"{OURS if environment is None else THEIRS}.{script}", args, _QUICK)


BENCHMARKS = {
    "halfcheetah": (
        Measure(
            "speed",
            ("steps_per_second", "cpu_microseconds", "peak_mb"),
            (
                _side("partita", None, "partita_cheetah", "many"),
                _side("partita-compiled", None, "partita_cheetah", "many", "--compile"),
                _side("partita-normalised", None, "partita_cheetah", "many", "--normalise"),
                _side("partita-default", None, "partita_cheetah", "default"),
                _side("partita-default-compiled", None, "partita_cheetah", "default", "--compile"),
                _side("partita-default-normalised", None, "partita_cheetah", "default", "--normalise"),
                _side("sb3", "sb3", "sb3_cheetah", "default"),
                _side("sb3-16", "sb3", "sb3_cheetah", "many"),
                _side("cleanrl-style", "sb3", "cleanrl_style_ppo", "default"),
                _side("cleanrl-style-16", "sb3", "cleanrl_style_ppo", "many"),
                Side("environment", "sb3", f"{THEIRS}.plain_cheetah", (), ("--steps", "2000"), floor=True),
            ),
        ),
    )
}

TARGETS: dict[str, tuple[Target, ...]] = {
    "halfcheetah": (
        Target("speed", "steps_per_second", "partita", "sb3", least=2.0),
        Target("speed", "steps_per_second", "partita-normalised", "cleanrl-style", least=2.0),
        Target("speed", "steps_per_second", "partita-default", "sb3"),
        Target("speed", "steps_per_second", "partita-default-compiled", "sb3"),
        Target("speed", "steps_per_second", "partita-compiled", "sb3-16"),
        Target("speed", "steps_per_second", "partita-default-normalised", "cleanrl-style"),
        Target("speed", "steps_per_second", "partita", "sb3-16"),
        Target("speed", "steps_per_second", "partita-normalised", "cleanrl-style-16"),
        Target("speed", "cpu_microseconds", "partita", "sb3"),
        Target("speed", "cpu_microseconds", "partita-default", "sb3"),
        *(
            Target("speed", "steps_per_second", name, "environment")
            for name in ("partita", "partita-default", "sb3", "cleanrl-style")
        ),
    )
}
