"""Other language models beside the one that learns: found in the folders of runs, and held to its tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from partita.core.errors import UserError
from partita.policies import lora
from partita.policies.language import LanguagePolicy
from partita.policies.loading import TOKENIZER_FILES

ARCHITECTURE = ("model_type", "num_attention_heads", "num_key_value_heads", "rope_parameters", "hidden_act")


def other(name: str, field: str, policy: LanguagePolicy) -> LanguagePolicy:
    """The model in a run's folder, or of a name that `policy.model` takes, beside `policy`; nothing of it learns.

    It has the dtype and the device of `policy`. Raises UserError, naming `field`, where there is no such model or its
    tokenizer has other tokens.
    """
    settings = replace(policy.settings, model=finished(name, field), lora_rank=0, gradient_checkpointing=False)
    try:
        found = settings.build(None, False, torch.Generator())
    except UserError as error:
        raise UserError(f"{field}: {str(error).removeprefix('model: ')}") from error
    check_tokens(policy.tokenizer, found.tokenizer, name, field)
    found.module.to(policy.device).requires_grad_(False)
    return found


def finished(name: str, field: str) -> str:
    """The policy in the folder of a run; any other name as it is. Raises UserError for a run without its policy."""
    folder = Path(name).expanduser()
    if (folder / "policy").is_dir():
        return str(folder / "policy")
    if (folder / "checkpoints").is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{field}: {name} holds no finished policy; continue it with: partita train --resume {name}")
    return name


def check_tokens(mine: Any, theirs: Any, name: str, field: str) -> None:
    """Raise UserError unless both tokenizers have the same tokens under the same numbers."""
    a, b = mine.get_vocab(), theirs.get_vocab()
    if a != b:
        differ = (key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        token = min(differ, key=lambda key: (a.get(key, len(a)), key))
        raise UserError(
            f"{field}: the tokenizer of {name} is another than the policy's (token {token!r} is "
            f"{b.get(token, 'not')} there, {a.get(token, 'not')} here); give a model with the same tokenizer"
        )


def whole(policy: LanguagePolicy) -> LanguagePolicy:
    """The policy with its adapter, if it has one, added into its weights."""
    if policy.adapter is None:
        return policy
    return LanguagePolicy(lora.merged(policy.adapter), policy.tokenizer, policy.settings)


def check_alike(mine: LanguagePolicy, theirs: LanguagePolicy, name: str, field: str) -> None:
    """Raise UserError, naming the first difference, unless weights of one mean the same in the other."""
    for key in ARCHITECTURE:
        a, b = (getattr(policy.lm.config.get_text_config(), key, None) for policy in (mine, theirs))
        if a != b:
            raise UserError(f"{field}: {name} is of another architecture ({key} is {b} there, {a} here)")
    ours, other = (dict(policy.lm.named_parameters()) for policy in (mine, theirs))
    for key in (*ours, *other):
        shapes = [tuple(held[key].shape) if key in held else "not there" for held in (ours, other)]
        if shapes[0] != shapes[1]:
            a, b = shapes
            raise UserError(f"{field}: {name} is of another architecture ({key} is {b} there, {a} here)")
