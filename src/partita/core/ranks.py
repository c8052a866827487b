"""Ranks: processes that train together, each with all of the state and a share of the work.

Every rank runs the same program on the same numbers; only what costs (a policy's networks, `policies/spread`) is
divided, row by row, and put together again. What a loop or a part computes is therefore the same everywhere, and the
same as in one process up to the order of sums. Without ranks every function here does nothing.

The convention for gradients: a rank differentiates the whole loss, which depends on its own rows through its own
networks; `gathered` sums, for these rows, what all ranks say of them; the mean over ranks (`averaged`) of the
gradients that this leaves is the gradient of the loss.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from partita.core.shards import is_shard


def asked() -> int:
    """How many ranks `torchrun` started this process as one of; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Meet the other ranks, if there are any."""
    if asked() == 1 or world() > 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is; 0 writes what is to be written."""
    return dist.get_rank() if world() > 1 else 0


def edges(count: int) -> list[int]:
    """Where the shares of `count` rows begin and end: rank r has rows [edges[r], edges[r + 1])."""
    ranks = world()
    return [round(i * count / ranks) for i in range(ranks + 1)]


def share(count: int) -> slice:
    """The rows of `count` that are this rank's: neighbours, so that groups stay together where they can."""
    bounds = edges(count)
    return slice(bounds[rank()], bounds[rank() + 1])


def own_rows(count: int) -> slice:
    """The rows that this rank computes: its share, and the first one where that is none, so that no network is idle."""
    mine = share(count)
    return mine if mine.stop > mine.start or not count else slice(0, 1)


def gathered(own: Tensor, count: int) -> Tensor:
    """All `count` rows of a tensor (count, ...), of which each rank gives its `own_rows`; differentiable, twice too."""
    mine = share(count)
    return own if world() == 1 else _Gather.apply(own[: mine.stop - mine.start], count)


def averaged(tensors: Sequence[Tensor]) -> None:
    """Put the mean over ranks in the place of each tensor; what has the same dtype and device travels together.

    Shards are left as they are: what puts a gradient into parts has taken the mean.
    """
    if world() == 1 or not tensors:
        return
    tensors = [x for x in tensors if not is_shard(x)]
    for kind in {(x.dtype, x.device): None for x in tensors}:
        alike = [x for x in tensors if (x.dtype, x.device) == kind]
        joined = torch.cat([x.detach().reshape(-1) for x in alike])
        dist.all_reduce(joined)
        joined /= world()
        for x, value in zip(alike, joined.split([x.numel() for x in alike]), strict=True):
            x.detach().copy_(value.view_as(x))


def anywhere(flags: Sequence[bool]) -> list[bool]:
    """Of each flag whether any rank has it."""
    if world() == 1 or not flags:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(x) for x in found]


def largest(value: int, device: torch.device | str = "cpu") -> int:
    """The largest of what the ranks say."""
    if world() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def agreed(value: Any) -> Any:
    """What rank 0 says: anything that JSON can hold."""
    if world() == 1:
        return value
    said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    heard = torch.zeros(largest(len(said) if rank() == 0 else 0), dtype=torch.uint8)
    if rank() == 0:
        heard.copy_(said)
    dist.broadcast(heard, 0)
    return json.loads(bytes(heard.tolist()))


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether these tensors, shards aside, have the same sum on every rank, as they must where all went well."""
    if world() == 1 or not tensors:
        return True
    sums = [x.detach().double().sum().cpu() for x in tensors if not is_shard(x)]
    total = torch.stack([torch.zeros((), dtype=torch.double), *sums]).sum()
    ends = torch.stack((total, -total))
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1]) or bool(total.isnan())


def wait() -> None:
    """Until every rank is here."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    """All rows of which each rank gives its own; backwards the ranks' slopes of the own rows, summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        ctx.count = count
        return _joined(own, count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grads[0], ctx.count), None


class _Scatter(torch.autograd.Function):
    """The own rows of the sum over ranks; backwards all rows of which each rank gives its own."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, count: int) -> Tensor:
        ctx.count = count
        total = whole.contiguous().clone()
        dist.all_reduce(total)
        return total[share(count)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _joined(grads[0], ctx.count), None


def _joined(own: Tensor, count: int) -> Tensor:
    bounds = edges(count)
    sizes = [high - low for low, high in zip(bounds, bounds[1:], strict=False)]
    kind = torch.uint8 if own.dtype == torch.bool else own.dtype
    padded = own.new_zeros((max(sizes), *own.shape[1:]), dtype=kind)
    padded[: len(own)] = own.detach().to(kind)
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return torch.cat([x[:size] for x, size in zip(found, sizes, strict=True)]).to(own.dtype)
