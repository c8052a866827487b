"""`partita export`: the language model that a run trained, as a folder that `transformers` and vLLM load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from partita.core.errors import UserError
from partita.core.limits import check_choice
from partita.core.words import positional, switch, take, whole
from partita.lab.config import Config
from partita.lab.model_card import card, written_here
from partita.lab.source import Source, opened, source
from partita.policies.pretrained import DTYPES, write


def main(argv: list[str]) -> None:
    """Export what the words name, and say where it is."""
    words = list(argv)
    to, out, step, dtype = (take(words, f"--{name}") for name in ("to", "out", "checkpoint", "dtype"))
    force = switch(words, "--force")
    folder = Path(positional(words, "export", "DIR", 1)[0])
    check_choice("--to", to or "hf", ("hf",))
    check_choice("--dtype", dtype or DTYPES[0], DTYPES)
    found = source(folder, None if step is None else whole("--checkpoint", step, least=1))
    target = free(Path(out) if out else place(folder, found), folder, force)
    off = export(found, target, dtype)
    print(f"wrote {target}: read back by transformers, its logits are at most {off:.2g} from those of the policy")


def place(folder: Path, found: Source) -> Path:
    """Where an export goes unless told otherwise: one place for each checkpoint."""
    return folder / f"hf_{found.weights.name}"


def free(target: Path, folder: Path, force: bool) -> Path:
    """Where an export may go; UserError where something else is, or an export that may not be replaced."""
    if not target.parent.is_dir():
        raise UserError(f"--out {target}: the folder {target.parent} does not exist; make it first")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"--out {target}: the folder {target.parent} cannot be written; choose another")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if target.resolve() == folder.resolve():
        raise UserError(f"--out {target}: is what is exported; choose another folder")
    if not target.is_dir() or not written_here(target):
        raise UserError(f"--out {target}: exists and is no exported model; choose another folder")
    if not force:
        raise UserError(f"--out {target}: holds an exported model; choose another folder, or --force to replace it")
    return target


def export(found: Source, target: Path, dtype: str | None) -> float:
    """Write the folder, whole or not at all; the largest difference of a logit. dtype None: the policy's own."""
    policy, own = opened(found)
    with _replaced(target) as temporary:
        off = write(policy, temporary, dtype or own, sampling(found.config))
        chat = bool(getattr(policy.tokenizer, "chat_template", None))
        readme = temporary / "README.md"
        readme.write_text(card(found.config, found.step, dtype or own, chat), encoding="utf-8")
        for file in temporary.iterdir():  # safetensors writes for its owner's eyes alone
            file.chmod(readme.stat().st_mode)
    return off


def sampling(config: Config | None) -> dict[str, Any]:
    """How responses were drawn in training, as `GenerationConfig` says it."""
    recipe: Any = None if config is None else config.recipe
    task: Any = None if config is None else config.task
    drawn = getattr(recipe, "rollout", None) or getattr(recipe, "resample", None)
    known = {name: getattr(drawn, name, off) for name, off in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0))}
    if least := getattr(drawn, "min_p", 0.0):
        known["min_p"] = least
    if tokens := getattr(drawn, "max_tokens", None) or getattr(task, "max_tokens", None):
        known["max_new_tokens"] = tokens
    return known


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end of the block, and is removed on failure."""
    new, old = (target.with_name(f".{target.name}.{what}.{os.getpid()}") for what in ("new", "old"))
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    except (OSError, SafetensorError) as error:
        if old.exists() and not target.exists():
            old.rename(target)
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--out {target}: cannot be written ({why}); choose another place") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
