"""Make the tiny base models that come with the package: `python scripts/make_base_models.py`.

Everything that decides the result stands in `base_models.json`: shares of tasks, levels and procedures, sizes,
seed, steps, learning rates. The same recipe gives the same weights on the same machine with the same versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from base_model_data import Sequences, generate, joined
from llama_bf16 import Bf16Copy
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from partita.policies.loading import SHIPPED
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model

HERE = Path(__file__).resolve().parent
BUCKET = 8  # lengths are rounded up to a multiple of it


def main() -> None:
    """Make the models that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=HERE / "base_models.json")
    parser.add_argument("--only", default="", help="name of one model; default all of the recipe")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder that holds the model folders")
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps data and weights between runs")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = json.loads(options.recipe.read_text())
    if options.only and options.only not in recipe["models"]:
        parser.error(f"--only: no model {options.only!r}; the recipe has {', '.join(recipe['models'])}")
    tokenizer = character_tokenizer(context=recipe["context"])
    for name in [options.only] if options.only else list(recipe["models"]):
        mine = {**recipe, "models": {name: recipe["models"][name]}}
        folder = save(make(name, mine, tokenizer, options.cache), tokenizer, options.out / name, mine)
        print("wrote", folder)


def make(name: str, recipe: Mapping[str, Any], tokenizer: Any, cache: Path | None) -> Any:
    """A model of the recipe: random weights, then its stages one after the other."""
    settings = recipe["models"][name]
    shape = {k: settings[k] for k in ("hidden", "layers", "heads", "kv_heads")}
    lm = tiny_model(tiny_config("llama", context=recipe["context"], **shape), recipe["seed"]).train()
    history: list[Any] = [shape, recipe["seed"]]
    for number, stage in enumerate(settings["stages"]):
        tasks = {task: chosen(about, stage["mixture"]) for task, about in recipe["tasks"].items()}
        cell = {**recipe, "tasks": tasks, "sequences": stage["sequences"], "seed": recipe["seed"] + 100 * number}
        history += [tasks, {k: v for k, v in stage.items() if k != "steps" or stage["decay"]}]
        keep = None if cache is None else cache / f"{name}-{_hash(history)}"
        data = joined([_task_data(cell, task, tokenizer, cache) for task in tasks])
        size = len(data.tokens) / 1e6
        print(f"{name}, stage {number + 1}: {len(data)} sequences, {size:.1f} M characters", flush=True)
        train(lm, stage, data, cell["seed"], keep)
        history.append(stage["steps"])
    return lm.eval()


def chosen(about: Mapping[str, Any], mixture: str) -> dict[str, Any]:
    """The settings of a task with the mixture of that name, and its weight then; the first where it has none."""
    mixtures = about["mixtures"]
    weight = about.get("weights", {}).get(mixture, about["weight"])
    return {"weight": weight, "levels": about["levels"], "mixture": mixtures.get(mixture, mixtures["first"])}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _task_data(recipe: Mapping[str, Any], name: str, tokenizer: Any, cache: Path | None) -> Sequences:
    if cache is None:
        return generate(recipe, name, tokenizer)
    total = sum(task["weight"] for task in recipe["tasks"].values())
    file = cache / f"{name}-{_hash([recipe['seed'], recipe['sequences'] / total, recipe['tasks'][name]])}.safetensors"
    if not file.is_file():
        data = generate(recipe, name, tokenizer)
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": data.tokens, "act": data.act, "start": data.start}, file)
    return Sequences(**load_file(file))


def batches(data: Sequences, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B, T) and act (B, T) of about `size` characters, of sequences of like length; endless."""
    lengths = data.start[1:] - data.start[:-1]
    width = -(-lengths // BUCKET) * BUCKET
    while True:
        order = torch.randperm(len(data), generator=generator)
        chunks: list[Tensor] = []
        for w in width.unique().tolist():
            chunks += order[width[order] == w].split(max(size // w, 1))
        for k in torch.randperm(len(chunks), generator=generator).tolist():
            rows = chunks[k]
            column = torch.arange(int(lengths[rows].max()))
            there = column < lengths[rows, None]
            place = (data.start[rows, None] + column).clamp_max(len(data.tokens) - 1)
            yield data.tokens[place].long().masked_fill(~there, 0), data.act[place] & there


def train(lm: Any, stage: Mapping[str, Any], data: Sequences, seed: int, keep: Path | None) -> None:
    """Train the model, in place, to write what the sequences write where `act` is true.

    Computed in bfloat16 on float32 weights. Matrices learn by Muon (orthogonalised momentum), embeddings and norms
    by AdamW. The rate rises over the first `warmup` steps and falls linearly to zero over the last share `decay` of
    the steps. keep: weights are kept under this name every 100 steps, and found again by a run that asks for them.
    """
    body = [p for n, p in lm.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in lm.named_parameters() if p.ndim != 2 or "embed" in n]
    rate, steps = stage["learning_rate"], stage["steps"]
    if keep is not None and (found := keep.with_name(f"{keep.name}-{steps}.safetensors")).is_file():
        lm.load_state_dict(load_file(found), strict=False)
        return
    muon = torch.optim.Muon(body, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    fast = Bf16Copy(lm)
    stream = batches(data, stage["batch"] // stage["parts"], torch.Generator().manual_seed(seed))
    began, heard = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        parts = [next(stream) for _ in range(stage["parts"])]
        count = sum(int(act[:, 1:].sum()) for _, act in parts)
        fast.refresh()
        for tokens, act in parts:
            before = act.roll(-1, 1)
            before[:, -1] = False
            told = fast.logits(tokens, before)
            loss = cross_entropy(told, tokens[:, 1:][act[:, 1:]], reduction="sum") / count
            loss.backward()
            fast.collect()
            heard += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([*body, *rest], 1.0)
        scale = min(step / stage["warmup"], 1.0)
        if stage["decay"]:
            scale = min(scale, (steps - step + 1) / (stage["decay"] * steps))
        for optimiser in (muon, adam):
            for group in optimiser.param_groups:
                group["lr"] = rate * scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps:
            if not math.isfinite(heard):
                raise SystemExit(f"step {step}: the loss is not finite; lower the learning rate")
            print(f"step {step}/{steps}  loss {heard / 50:.4f}  {time.monotonic() - began:.0f} s", flush=True)
            heard = 0.0
        if keep is not None and (step % 100 == 0 or step == steps):
            weights = {n: p.detach().clone() for n, p in lm.named_parameters()}
            save_file(weights, keep.with_name(f"{keep.name}-{step}.safetensors"))


def save(lm: Any, tokenizer: Any, folder: Path, recipe: Mapping[str, Any]) -> Path:
    """Write the model (float16), its tokenizer and `recipe.json` under another name, then rename to `folder`."""
    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    lm.to(torch.float16).save_pretrained(made)
    tokenizer.save_pretrained(made)
    about = {"parameters": lm.num_parameters(), "torch": torch.__version__, **recipe}
    (made / "recipe.json").write_text(json.dumps(about, indent=1) + "\n")
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


if __name__ == "__main__":
    main()
