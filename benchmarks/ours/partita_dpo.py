"""DPO in Partita on the tiny model: pairs a second and peak memory.

    python -m benchmarks.ours.partita_dpo short known --model FOLDER

The library's own loop and `dpo` recipe on a JSONL file of pairs; `benchmarks/dpo.py` has the workload. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers  # noqa: F401 - imported before the baseline of memory is taken, as in the peer's script
from benchmarks.dpo import PAIRS, REFERENCES, SIZES, WARM, rows, tokens
from benchmarks.protocol import peak_mb, rates, report

from partita.core import registry
from partita.core.batch import Batch
from partita.loops.preference import train
from partita.loops.run import Run
from partita.policies.language import Language
from partita.tasks.preferences.dataset import Comparisons


class Clock(Run):
    """Notes the time at the end of each step, and the numbers of tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.lengths: set[tuple[int, int]] = set()
        self.comparisons: set[float] = set()

    def log(self, step: int, metrics: Mapping[str, float], batch: Batch | None = None) -> None:
        assert batch is not None
        prompt = batch.context["prompt_mask"].sum(1).tolist()
        self.lengths.update(zip(prompt, batch.lengths.tolist(), strict=True))
        self.comparisons.add(metrics["comparisons"])
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("size", choices=list(SIZES))
    flags.add_argument("reference", choices=REFERENCES)
    flags.add_argument("--model", required=True)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--steps", type=int, default=10)
    flags.add_argument("--micro", type=int, default=16, help="responses in one backward pass")
    args = flags.parse_args()
    imported_mb = peak_mb()

    run = Clock(args.seed)
    recipe = registry.recipe("dpo").but(batch_size=PAIRS, steps=WARM + args.steps, lr=1e-4, micro_batch=args.micro)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows(args.size, args.reference, args.steps, args.seed)))
        task = Comparisons(path=str(path), held_out=0.0)
        policy = Language(model=args.model).build(task, False, run.generators["init"])
        train(recipe, policy, task, run)
    if run.lengths != {SIZES[args.size]} or run.comparisons != {PAIRS} or len(run.ends) != WARM + args.steps:
        raise SystemExit(f"{run.lengths} tokens, {run.comparisons} pairs, {len(run.ends)} steps: not as agreed")
    found = rates(run.ends, run.processor, WARM, tokens(args.size))
    report(
        "partita",
        ("partita", "torch", "transformers", "tokenizers"),
        what=f"{args.size} {args.reference}",
        seed=args.seed,
        pairs_per_second=found["tokens_per_second"] / tokens(args.size) * PAIRS,
        **found,
        imported_mb=imported_mb,
        increase_mb=round(peak_mb() - imported_mb, 1),
        threads=torch.get_num_threads(),
        settings=f"micro {args.micro} responses",
    )


if __name__ == "__main__":
    main()
