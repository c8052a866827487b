"""Checkpoints: nested state as safetensors files and one JSON file, written whole or not at all.

What is whole is in one file, which the first rank writes. What ranks hold parts of, each of them writes for itself,
side by side, by torch's Distributed Checkpoint, whose storage of safetensors files puts the parts together for any
number of readers. (Its own storage keeps a pickle; this one does not.)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from partita.core import ranks
from partita.core.errors import UserError
from partita.core.shards import is_shard
from partita.lab.files import write_text

TENSOR = "__tensor__"
WHOLE, PARTS, ABOUT = "state.safetensors", "parts", "state.json"


def flatten(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Move the tensors of a nested state into `tensors`, leaving their names in a structure that JSON can hold.

    They stay where they are and what they are, parts too.
    """
    if isinstance(state, Tensor):
        tensors[path] = state.detach()
        return {TENSOR: path}
    if isinstance(state, Mapping):
        return {str(k): flatten(v, tensors, f"{path}/{k}") for k, v in state.items()}
    if isinstance(state, list | tuple):
        return [flatten(v, tensors, f"{path}/{i}") for i, v in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"state {path}: cannot save a {type(state).__name__}; keep tensors, numbers, strings, lists, dicts")


def restore(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `flatten`."""
    if isinstance(structure, dict):
        if set(structure) == {TENSOR}:
            return tensors[structure[TENSOR]]
        return {k: restore(v, tensors) for k, v in structure.items()}
    if isinstance(structure, list):
        return [restore(v, tensors) for v in structure]
    return structure


def save(folder: Path, state: Any) -> None:
    """Write `state` to `folder` (created) so that a kill at any moment leaves no folder of that name or a whole one.

    Of several ranks every one must call it, on a file system that they share; the first one does all but the parts.
    """
    first = ranks.rank() == 0
    temporary = folder.with_name(f".{folder.name}.{ranks.agreed(os.getpid())}")
    tensors: dict[str, Tensor] = {}
    structure = flatten(state, tensors)
    parts = {name: x for name, x in tensors.items() if is_shard(x)}
    try:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        if parts:
            ranks.wait()
            _save_part(temporary / PARTS, parts)
            ranks.wait()
        if first:
            rest = {name: x for name, x in tensors.items() if name not in parts}
            save_file({name: x.to("cpu", copy=True).contiguous() for name, x in rest.items()}, temporary / WHOLE)
            with open(temporary / WHOLE, "rb") as file:
                os.fsync(file.fileno())
            digests = {path.stem: path.read_text() for path in sorted(temporary.glob(f"{PARTS}/*.sha256"))}
            if parts and len(digests) < ranks.world():
                raise UserError(f"{folder}: {len(digests)} of {ranks.world()} ranks wrote their part; --out must be "
                                "on a file system that all of them share")  # fmt: skip
            about = {"sha256": _digest(temporary / WHOLE), "parts": digests, "state": structure}
            write_text(temporary / ABOUT, json.dumps(about))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except BaseException:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save_part(folder: Path, parts: dict[str, Any]) -> None:
    """Write what this rank holds of `parts`, and the sum of the file beside it."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_parts

    save_parts(parts, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    for mine in folder.glob(f"shard-{ranks.rank() + 1:05d}-*.safetensors"):
        (folder / f"{mine.name}.sha256").write_text(_digest(mine))


def load(folder: Path) -> Any:
    """Read what `save` wrote, whole; UserError naming the folder when it is damaged."""
    fix = "remove that folder to go back to the checkpoint before it"
    try:
        about = json.loads((folder / ABOUT).read_text())
        structure = about["state"]
        digests = {WHOLE: about["sha256"]} | {f"{PARTS}/{k}": v for k, v in about.get("parts", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: damaged checkpoint, {ABOUT} is unreadable ({error}); {fix}") from error
    name = WHOLE
    try:
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                raise UserError(f"{folder}: damaged checkpoint, {name} does not match its checksum; {fix}")
        tensors = load_file(folder / WHOLE)
        if len(digests) > 1:
            tensors |= _load_parts(folder / PARTS)
        return restore(structure, tensors)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: damaged checkpoint, {name} is unreadable ({error}); {fix}") from error


def _load_parts(folder: Path) -> dict[str, Tensor]:
    """All tensors that ranks wrote parts of, put together."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_parts
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    held = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    found: dict[str, Any] = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in held.items()
        if isinstance(about, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads, which is what is meant
        load_parts(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b
