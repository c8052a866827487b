"""Low-rank adapters through peft, drawn from a generator."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch

from partita.core.errors import UserError


def add(lm: Any, rank: int, alpha: int, targets: tuple[str, ...], base: str, generator: torch.Generator) -> Any:
    """Put fresh adapters into `lm`; all else is frozen. Returns the peft model around it.

        W' = W + (alpha / rank) B A,    A ~ U(-1/sqrt(D), 1/sqrt(D)),    B = 0

    (Hu et al., 2021, arXiv:2106.09685; A as in peft.) Raises UserError for targets that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    if any("lm_head" in t for t in targets):
        raise UserError("lora_targets: the last layer (lm_head) takes no adapter here; leave it out")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        target_modules=list(targets) if targets else "all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = get_peft_model(lm, config)
    except ValueError as error:
        known = sorted({n.rpartition(".")[2] for n, m in lm.named_modules() if getattr(m, "weight", None) is not None})
        raise UserError(f"lora_targets: {targets} cannot be adapted; the model has {', '.join(known)}") from error
    adapter.peft_config["default"].base_model_name_or_path = base
    for name, parameter in adapter.named_parameters():
        if "lora_A" in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            draw = torch.rand(parameter.shape, generator=generator, device=generator.device)
            parameter.data.copy_((2 * draw - 1) * bound)
    return adapter.eval()


def load(lm: Any, folder: str) -> Any:
    """Put the adapter saved in `folder` into `lm`, ready to learn on."""
    from pathlib import Path

    from peft import PeftModel

    from partita.policies.loading import check_weights

    check_weights(sorted(Path(folder).glob("adapter_model.safetensors")))
    try:
        return PeftModel.from_pretrained(lm, folder, is_trainable=True).eval()
    except (ValueError, RuntimeError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"model: the adapter in {folder} does not fit its base model ({line}); save it again"
        ) from error


def merged(adapter: Any) -> Any:
    """A copy of the model with the adapter added into its weights."""
    return copy.deepcopy(adapter).merge_and_unload()
