"""Checkpoints: nested state as one safetensors file and one JSON file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from partita.core.errors import UserError
from partita.core.shards import whole
from partita.lab.files import write_text

TENSOR = "__tensor__"


def flatten(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Move the tensors of a nested state into `tensors`, leaving their names in a structure that JSON can hold.

    Shards are put together, one after the other: meanwhile all other ranks must `give` the same state.
    """
    if isinstance(state, Tensor):
        tensors[path] = whole(state).detach().to("cpu", copy=True).contiguous()
        return {TENSOR: path}
    if isinstance(state, Mapping):
        return {str(k): flatten(v, tensors, f"{path}/{k}") for k, v in state.items()}
    if isinstance(state, list | tuple):
        return [flatten(v, tensors, f"{path}/{i}") for i, v in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"state {path}: cannot save a {type(state).__name__}; keep tensors, numbers, strings, lists, dicts")


def give(state: Any) -> None:
    """Let another rank `flatten` what this one holds a part of."""
    if isinstance(state, Tensor):
        whole(state)
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            give(value)


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
    """Write `state` to `folder` (created) so that a kill at any moment leaves no folder of that name or a whole one."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    tensors: dict[str, Tensor] = {}
    structure = flatten(state, tensors)  # before anything that may fail here alone: other ranks take part in it
    temporary.mkdir(parents=True)
    try:
        save_file(tensors, temporary / "state.safetensors")
        digest = _digest(temporary / "state.safetensors")
        write_text(temporary / "state.json", json.dumps({"sha256": digest, "state": structure}))
        with open(temporary / "state.safetensors", "rb") as file:
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(folder: Path) -> Any:
    """Read what `save` wrote; UserError naming the folder when it is damaged."""
    fix = "remove that folder to go back to the checkpoint before it"
    try:
        about = json.loads((folder / "state.json").read_text())
        structure, digest = about["state"], about["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: damaged checkpoint, state.json is unreadable ({error}); {fix}") from error
    try:
        found = _digest(folder / "state.safetensors")
        if found != digest:
            raise UserError(f"{folder}: damaged checkpoint, state.safetensors does not match its checksum; {fix}")
        return restore(structure, load_file(folder / "state.safetensors"))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: damaged checkpoint, state.safetensors is unreadable ({error}); {fix}") from error


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
