"""Whose weights are exported: those of a run at a checkpoint, or of a saved policy, if it is a language model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from partita.core.errors import UserError
from partita.lab.config import Config
from partita.lab.run import read_rows
from partita.lab.train import build_policy, policy_at
from partita.policies.ensemble import Ensemble, members
from partita.policies.language import Language, LanguagePolicy
from partita.policies.pretrained import DTYPES


@dataclass(frozen=True)
class Source:
    """Where weights come from: a checkpoint of a run, or a saved policy, of which a run may be known."""

    weights: Path
    config: Config | None
    step: int | None


def source(folder: Path, step: int | None = None) -> Source:
    """The weights of a run after `step` (None: the last checkpoint, else the saved policy), or a saved policy.

    Raises UserError for what holds none, and for policies that are no language models.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a run, or of a saved policy")
    about = _json(folder / "config.json")
    inside = folder.name == "policy" and "recipe" in _json(folder.parent / "config.json")
    if "recipe" in about:
        return _of_run(folder, _config(folder), step)
    if step is not None:
        raise UserError(f"--checkpoint {step}: {folder} is not a run; leave it out")
    if inside:
        return _saved(folder.parent, _config(folder.parent))
    if (folder / "policy.json").is_file():
        raise UserError(
            f"{folder}: a policy for control, and only language models are exported; its weights are in "
            f"{folder / 'policy.safetensors'}"
        )
    if members(folder):
        raise UserError(f"{folder}: an ensemble of reward models, which judge and do not write; name a policy")
    if "model_type" not in about and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: neither a run nor a saved policy; name a folder that partita train wrote")
    return Source(folder, None, None)


def _of_run(folder: Path, config: Config, step: int | None) -> Source:
    held = {int(p.name[5:]): p for p in sorted((folder / "checkpoints").glob("step_*")) if p.name[5:].isdigit()}
    if step is not None and step not in held:
        known = " and ".join(map(str, held)) or "no step"
        raise UserError(f"--checkpoint {step}: {folder} holds {known}; leave it out for the last one")
    if held:
        last = max(held) if step is None else step
        return Source(held[last], config, last)
    if (folder / "policy").is_dir():
        return _saved(folder, config)
    raise UserError(f"{folder}: has no checkpoint yet; continue it with: partita train --resume {folder}")


def _saved(folder: Path, config: Config) -> Source:
    rows = read_rows(folder / "metrics.jsonl")
    return Source(folder / "policy", config, rows[-1]["step"] if rows else None)


def _config(folder: Path) -> Config:
    """The configuration of a run; UserError where its policy writes nothing."""
    config = Config.read(folder / "config.json")
    if config.task.domain != "language":
        saved = folder / "policy" / "policy.safetensors"
        where = f"its weights are in {saved}, and " if saved.is_file() else ""
        raise UserError(
            f"{folder}: its policy acts in control, and only language models are exported; {where}"
            "partita.lab.train.load_policy(folder) gives it in Python"
        )
    if isinstance(config.policy, Ensemble) or (config.recipe.loop == "preference" and "value" in config.recipe.needs()):
        raise UserError(
            f"{folder}: holds a reward model ({config.name}), which judges and does not write; name the run of a "
            f"policy, or let it judge: partita evaluate RUN --best-of 4 --judge {folder}"
        )
    return config


def opened(found: Source) -> tuple[LanguagePolicy, str]:
    """The policy, and the dtype that its weights are meant to have."""
    if found.config is None:
        about = _json(found.weights / "config.json")
        declared = about.get("dtype") or about.get("torch_dtype")
        policy: Any = Language(model=str(found.weights)).build(None, False, torch.Generator())
        return policy, declared if declared in DTYPES else DTYPES[0]
    config = replace(found.config, settings=replace(found.config.settings, device="auto", shard=False))
    settings: Any = config.policy
    if found.weights.name == "policy":
        policy = build_policy(replace(config, policy=settings.but(model=str(found.weights), lora_rank=0)))
        return policy, settings.dtype
    policy = policy_at(config, found.weights)
    return policy, settings.dtype


def _json(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; nothing where there is no such file."""
    try:
        held = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())}); write it again") from error
    return held if isinstance(held, dict) else {}
