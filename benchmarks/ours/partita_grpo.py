"""GRPO in Partita on the tiny model: tokens a second and peak memory.

    python -m benchmarks.ours.partita_grpo short --model FOLDER     # prompts of 12, completions of 12 tokens
    python -m benchmarks.ours.partita_grpo long  --model FOLDER     # prompts of 128, completions of 64 tokens

The library's own loop and `grpo` recipe: 256 completions a step in groups of 8 (or --group), no KL term, one update a
batch.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers  # noqa: F401 - imported before the baseline of memory is taken, as in the peer's script
from benchmarks.protocol import peak_mb, rates, report
from benchmarks.tiny_model import COMPLETIONS, GROUP, SIZES, prompts, reward

from partita.core import registry
from partita.core.batch import Batch
from partita.core.task import Outcome, Problem
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.parts.rollout import Sample
from partita.policies.language import Language
from partita.tasks.language.base import LanguageTask


@dataclass(frozen=True)
class Vowels(LanguageTask):
    """Random prompts; a response is worth its share of vowels."""

    length: int = 12
    seed: int = 0

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        seed = int(torch.randint(2**31, (), generator=generator))
        return [Problem(text) for text in prompts(n, self.length, seed)]

    def verify(self, problem: Problem, response: str) -> Outcome:
        return Outcome(reward(response))


class Clock(Run):
    """Notes the time at the end of each step, and how long the responses were."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.lengths: set[int] = set()

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        assert batch is not None
        self.lengths.update(batch.lengths.tolist())
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("size", choices=list(SIZES))
    flags.add_argument("--model", required=True)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--warm", type=int, default=3)
    flags.add_argument("--steps", type=int, default=10)
    flags.add_argument("--group", type=int, default=GROUP, help="completions of a prompt; as many in all")
    flags.add_argument("--micro", type=int, default=16, help="completions in one backward pass")
    args = flags.parse_args()
    imported_mb = peak_mb()

    prompt_length, completion_length = SIZES[args.size]
    total = args.warm + args.steps
    recipe = registry.recipe("grpo").but(
        rollout=Sample(max_tokens=completion_length),
        batch_size=COMPLETIONS // args.group,
        group_size=args.group,
        micro_batch=args.micro,
        steps=total,
        lr=1e-4,
    )
    run = Clock(args.seed)
    task = Vowels(prompt_length, args.seed)
    policy = Language(model=args.model).build(task, False, run.generators["init"])

    # No token ends a response, as on the other side: every completion has full length.
    never = policy.stopper(())
    never = replace(never, certain=torch.zeros_like(never.certain))
    setattr(policy, "stopper", lambda strings: never)  # noqa: B010

    train(recipe, policy, task, run)
    if run.lengths != {completion_length} or len(run.ends) != total:
        raise SystemExit(f"completions of {sorted(run.lengths)} tokens, {len(run.ends)} steps: not the agreed workload")
    report(
        "partita",
        ("partita", "torch", "transformers", "tokenizers"),
        what=args.size,
        seed=args.seed,
        **rates(run.ends, run.processor, args.warm, COMPLETIONS * (prompt_length + completion_length)),
        imported_mb=imported_mb,
        increase_mb=round(peak_mb() - imported_mb, 1),
        threads=torch.get_num_threads(),
        settings=f"micro {args.micro}, {COMPLETIONS // args.group} prompts x {args.group}",
    )


if __name__ == "__main__":
    main()
