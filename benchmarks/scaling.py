"""The benchmark of size: Partita alone, from few to many environments, responses of a prompt, transitions.

    python benchmarks/run.py scaling         # time of a step, a token, an update at every size, over the smallest's

microseconds: of one unit of work, which costs the same at every size as far as arithmetic goes.

    environments    PPO on CartPole as in `cartpole`, N x 128 steps, 4 epochs of minibatches of 1,024     a step
    responses       GRPO as in `grpo` (long), 256 completions a step, N to a prompt                       a token
    transitions     TD3+BC as in `offline`, batches of 256 drawn from N, on one core                      an update

A token counts for each completion that reads it: prompts that more completions share are read less often. Transitions
have observations of 3 numbers and actions of 1, 36 bytes each in the store; what is reported of memory includes the
data that they are copied from. `LARGEST_MB` limits it at ten million.
"""

from __future__ import annotations

from benchmarks.jobs import OURS, Limit, Measure, Side, Target
from benchmarks.replay import BRIEFLY

ENVIRONMENTS = (64, 256, 1024, 4096, 16384)
RESPONSES = (2, 8, 16, 64)
TRANSITIONS = (10_000, 100_000, 1_000_000, 10_000_000)
LARGEST_MB = 3_000


def _environments(count: int) -> Side:
    args = ("speed", "--environments", str(count))
    return Side(str(count), None, f"{OURS}.partita_cartpole", args, ("--warm", "1", "--steps", "1", "--rollout", "4"))


def _responses(count: int) -> Side:
    args = ("long", "--model", "MODEL", "--warm", "1", "--steps", "4", "--group", str(count))
    return Side(str(count), None, f"{OURS}.partita_grpo", args, ("--steps", "1"))


def _transitions(count: int) -> Side:
    args = ("td3_bc", "--threads", "1", "--transitions", str(count), "--obs", "3", "--action", "1")
    return Side(str(count), None, f"{OURS}.partita_offline", args, BRIEFLY)


BENCHMARKS = {
    "scaling": (
        Measure(
            "environments", ("steps_per_second", "microseconds", "peak_mb"), tuple(map(_environments, ENVIRONMENTS))
        ),
        Measure("responses", ("tokens_per_second", "microseconds", "peak_mb"), tuple(map(_responses, RESPONSES))),
        Measure(
            "transitions", ("updates_per_second", "microseconds", "peak_mb"), tuple(map(_transitions, TRANSITIONS))
        ),
    )
}

TARGETS: dict[str, tuple[Target | Limit, ...]] = {
    "scaling": (
        *(
            Target(measure.name, "microseconds", side.name, measure.sides[0].name)
            for measure in BENCHMARKS["scaling"]
            for side in measure.sides[1:]
        ),
        Limit("transitions", "peak_mb", str(TRANSITIONS[-1]), most=LARGEST_MB),
    )
}
