"""GRPO in TRL on the tiny model: tokens a second and peak memory.

    python -m benchmarks.peers.trl_grpo short --model FOLDER     # prompts of 12, completions of 12 tokens
    python -m benchmarks.peers.trl_grpo long  --model FOLDER     # prompts of 128, completions of 64 tokens

256 completions a step in groups of 8, no KL term, one update a batch. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from benchmarks.protocol import peak_mb, rates, report
from benchmarks.tiny_model import COMPLETIONS, GROUP, SIZES, prompts, reward
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """When each optimisation step ended; `sign` is a file to make as soon as the first one has."""

    def __init__(self, sign: Path | None) -> None:
        self.sign = sign
        self.ends: list[float] = []
        self.processor: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())
        if self.sign is not None:
            self.sign.write_text("over\n")


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("size", choices=list(SIZES))
    flags.add_argument("--model", required=True)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--warm", type=int, default=3)
    flags.add_argument("--steps", type=int, default=10)
    flags.add_argument("--micro", type=int, default=64, help="completions in one backward pass")
    flags.add_argument("--bf16", action="store_true")
    flags.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    flags.add_argument("--cache", default=None, help="its cache_implementation")
    flags.add_argument("--sign", type=Path, default=None, help="a file that says that the first update is over")
    args = flags.parse_args()
    imported_mb = peak_mb()

    prompt_length, completion_length = SIZES[args.size]
    total = args.warm + args.steps
    clock = Clock(args.sign)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=args.micro,
            gradient_accumulation_steps=COMPLETIONS // args.micro,
            num_generations=GROUP,
            max_completion_length=completion_length,
            max_steps=total,
            beta=0.0,
            num_iterations=1,
            loss_type="grpo",
            learning_rate=1e-4,
            temperature=1.0,
            bf16=args.bf16,
            gradient_checkpointing=args.checkpointing,
            cache_implementation=args.cache,
            use_cpu=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
        )
        data = Dataset.from_dict({"prompt": prompts(total * COMPLETIONS // GROUP, prompt_length, args.seed)})
        lengths: set[int] = set()

        def score(completions: list[str], completion_ids: list[list[int]], **kwargs) -> list[float]:
            lengths.update(map(len, completion_ids))
            return [reward(text) for text in completions]

        # Its end-of-sequence token moves past the model's vocabulary: never sampled, and no processor is needed.
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        tokenizer.add_special_tokens({"eos_token": "<never>"})
        trainer = GRPOTrainer(args.model, score, config, train_dataset=data, processing_class=tokenizer)
        trainer.add_callback(clock)
        trainer.train()
    if lengths != {completion_length} or len(clock.ends) != total:
        raise SystemExit(f"completions of {sorted(lengths)} tokens in {len(clock.ends)} steps: not the agreed workload")
    report(
        "trl",
        ("trl", "torch", "transformers", "accelerate", "tokenizers"),
        what=args.size,
        seed=args.seed,
        **rates(clock.ends, clock.processor, args.warm, COMPLETIONS * (prompt_length + completion_length)),
        imported_mb=imported_mb,
        increase_mb=round(peak_mb() - imported_mb, 1),
        threads=torch.get_num_threads(),
        settings=f"micro {args.micro}, bf16 {args.bf16}, checkpointing {args.checkpointing}, cache {args.cache}",
    )


if __name__ == "__main__":
    main()
