"""Rows of verl as fields of a `Batch`, and those that verl's signatures leave out.

A trainer of ours hands what it has beside verl's arguments to parts that it does not call itself (`beside`): between
the two is verl's own code, which stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

# Names of verl's fields, each (B, T) or nested (B, j) over the tokens of the response, and ours.
FIELDS = {
    "old_log_probs": "logp", "rollout_log_probs": "sampler_logp", "ref_log_prob": "ref_logp", "values": "value",
    "entropy": "entropy", "turn": "turn", "state_key": "state_key",
}  # fmt: skip

PADDING = re.compile(r"pad[0-9a-f]{32}")  # the `uid` of rows that verl adds so that a batch divides evenly

_BESIDE: ContextVar[Mapping[str, Any] | None] = ContextVar("beside", default=None)


@contextmanager
def beside(fields: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, estimators and losses of ours find these fields of a `Batch` beside verl's arguments."""
    token = _BESIDE.set(fields)
    try:
        yield
    finally:
        _BESIDE.reset(token)


def found_beside() -> Mapping[str, Any] | None:
    """The fields that a trainer of ours passes on; None under a trainer of verl."""
    return _BESIDE.get()


def numbered(uid: Iterable[Any]) -> Tensor:
    """Names of groups as numbers, in the order in which they first appear, (B,) int64."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(str(name), len(seen)) for name in uid], dtype=torch.int64)


def genuine(uid: Iterable[Any]) -> Tensor:
    """False for the rows that verl adds so that a batch divides evenly, (B,) bool."""
    return torch.tensor([PADDING.fullmatch(str(name)) is None for name in uid])


def read(data: TensorDict) -> dict[str, Any]:
    """The fields of a `Batch` that rows of verl hold, (B, T) and (B,), padded on the right with zeros."""
    found: dict[str, Any] = {ours: padded(data[name]) for name, ours in FIELDS.items() if name in data}
    if "rm_scores" in data:
        found["outcome"] = padded(data["rm_scores"]).sum(1)
    if "responses" in data:
        found["inputs"] = {"tokens": padded(data["responses"])}
    if "uid" in data:
        found["group"] = numbered(data["uid"]).to(padded(data["response_mask"]).device)
    return found


def padded(x: Tensor) -> Tensor:
    """A nested tensor (B, j) as (B, T), zero beyond the end of its rows; any other as it is."""
    return x.to_padded_tensor(0) if x.is_nested else x
