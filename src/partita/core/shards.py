"""Shards: tensors of which each rank holds a part, as `policies/shard` makes them (torch's DTensor, cut along dim 0).

Whoever meets a tensor that may be one asks here; a tensor that is none is whole, and nothing happens to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_shard(x: Any) -> bool:
    """Whether other ranks hold other parts of it. (The class itself is a second's import.)"""
    return hasattr(x, "to_local")


def own(x: Tensor) -> Tensor:
    """This rank's part, in the same memory."""
    held: Any = x
    return held.detach().to_local() if is_shard(x) else x


def whole(x: Tensor) -> Tensor:
    """All parts together; every rank must ask for it."""
    held: Any = x
    return held.detach().full_tensor() if is_shard(x) else x


def placed(value: Tensor, like: Tensor) -> Tensor:
    """`value` as `like` is held: on its device and, where that is a shard, this rank's part alone."""
    if not is_shard(like) or is_shard(value):
        return value.to(like.device)
    from torch.distributed.tensor import DTensor

    if value.shape != like.shape:
        raise ValueError(f"expected {tuple(like.shape)}, got {tuple(value.shape)}")
    held: Any = like
    parts, place = value.chunk(held.device_mesh.size()), held.device_mesh.get_local_rank()
    mine = (parts[place] if place < len(parts) else value[:0]).to(like.device, copy=True)
    return DTensor.from_local(
        mine, held.device_mesh, held.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The length of all tensors as one vector, scalar; shards count with the parts that other ranks hold."""
    lengths = torch._foreach_norm([own(x) for x in tensors])
    cut = [length for x, length in zip(tensors, lengths, strict=True) if is_shard(x)]
    if cut:
        total = torch.stack(cut).double().square().sum()
        dist.all_reduce(total)
        kept = [length for x, length in zip(tensors, lengths, strict=True) if not is_shard(x)]
        lengths = (*kept, total.sqrt().to(cut[0].dtype))
    return torch.linalg.vector_norm(torch.stack(lengths))
