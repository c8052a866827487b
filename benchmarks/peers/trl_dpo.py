"""DPO in TRL on the tiny model: pairs a second and peak memory.

    python -m benchmarks.peers.trl_dpo short known --model FOLDER

`benchmarks/dpo.py` has the workload. Where the reference is known, `precompute_ref_log_probs` has asked it before the
first step. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from benchmarks.dpo import PAIRS, REFERENCES, SIZES, WARM, rows, tokens
from benchmarks.protocol import peak_mb, rates, report
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference


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


class Collator(DataCollatorForPreference):
    """Its own, which also notes the numbers of tokens."""

    def torch_call(self, examples):
        seen.update((len(e["prompt_ids"]), len(e[side])) for e in examples for side in ("chosen_ids", "rejected_ids"))
        return super().torch_call(examples)


seen: set[tuple[int, int]] = set()


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("size", choices=list(SIZES))
    flags.add_argument("reference", choices=REFERENCES)
    flags.add_argument("--model", required=True)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--steps", type=int, default=10)
    flags.add_argument("--micro", type=int, default=16, help="responses in one backward pass")
    flags.add_argument("--bf16", action="store_true")
    flags.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    flags.add_argument("--sign", type=Path, default=None, help="a file that says that the first update is over")
    args = flags.parse_args()
    imported_mb = peak_mb()

    clock, each = Clock(args.sign), args.micro // 2
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=each,
            gradient_accumulation_steps=PAIRS // each,
            precompute_ref_log_probs=args.reference == "known",
            precompute_ref_batch_size=each,
            max_steps=WARM + args.steps,
            max_length=None,
            beta=0.1,
            learning_rate=1e-4,
            bf16=args.bf16,
            gradient_checkpointing=args.checkpointing,
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
        data = Dataset.from_list(rows(args.size, args.reference, args.steps, args.seed))
        trainer = DPOTrainer(args.model, args=config, train_dataset=data, data_collator=Collator(pad_token_id=0))
        trainer.add_callback(clock)
        trainer.train()
    if seen != {SIZES[args.size]} or len(clock.ends) != WARM + args.steps:
        raise SystemExit(f"{seen} tokens, {len(clock.ends)} steps: not as agreed")
    found = rates(clock.ends, clock.processor, WARM, tokens(args.size))
    report(
        "trl",
        ("trl", "torch", "transformers", "accelerate", "tokenizers"),
        what=f"{args.size} {args.reference}",
        seed=args.seed,
        pairs_per_second=found["tokens_per_second"] / tokens(args.size) * PAIRS,
        **found,
        imported_mb=imported_mb,
        increase_mb=round(peak_mb() - imported_mb, 1),
        threads=torch.get_num_threads(),
        settings=f"micro {args.micro} responses, bf16 {args.bf16}, checkpointing {args.checkpointing}",
    )


if __name__ == "__main__":
    main()
