"""Language models of which each rank keeps a part: weights, gradients and optimiser state of the decoder layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.policy import Policy
from partita.core.ranks import largest, rank
from partita.core.shards import is_shard, own, placed, whole
from partita.policies.language import LanguagePolicy
from partita.policies.layers import cut, release


def shard(policy: Policy, device: torch.device) -> Policy:
    """The same policy, its decoder layers cut into a part for each rank, on `device`.

    Embeddings, the last norm and the heads stay whole. Raises UserError for policies that cannot be cut.
    """
    if type(policy) is not LanguagePolicy:
        what = "has no decoder layers" if policy.domain != "language" else "holds several models side by side"
        raise UserError(
            f"--shard: it cuts the decoder layers of one language model, and this policy {what}; leave --shard out"
        )
    cut(policy.lm, device)
    policy.__class__ = _Sharded
    return policy


class _Sharded(LanguagePolicy):
    """Weights by name are shards where a layer has them, always the same ones: gathered copies come and go."""

    sharded = True
    agree = staticmethod(largest)

    def trainable(self) -> dict[str, nn.Parameter]:
        release(self.lm)
        return super().trainable()

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            release(self.lm)
        return super().hidden(batch)

    @contextmanager
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """`Policy.using`; the layers' weights are exchanged in place, where they are gathered from."""
        mine = {n: p for n, p in self.trainable().items() if n in weights and is_shard(p)}
        kept = {n: own(p).clone() for n, p in mine.items()}
        try:
            for name, parameter in mine.items():
                own(parameter).copy_(own(placed(weights[name], parameter)))
            with super().using({n: w for n, w in weights.items() if n not in mine}):
                yield
        finally:
            release(self.lm)
            for name, value in kept.items():
                own(mine[name]).copy_(value)

    def save(self, folder: Path, merged: bool = False) -> None:
        """`LanguagePolicy.save` by the first rank; every rank must call it, and gives its parts."""
        release(self.lm)
        model = self.lm if self.adapter is None else self.adapter
        state: dict[str, Any] = {}
        for name, value in model.state_dict().items():
            value = whole(value).cpu() if is_shard(value) else value
            if rank() == 0:
                state[name] = value
        if rank() == 0:
            self._write(folder, merged, state)
