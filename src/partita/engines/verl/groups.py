"""Groups kept whole: in the share of each rank, and so in its mini-batches and micro-batches."""

from __future__ import annotations

from collections import Counter
from typing import Any

from verl.utils.seqlen_balancing import get_group_balanced_partitions

from partita.core.errors import UserError


def keep_whole(batch: Any, ranks: int, size: int, minibatch: int) -> None:
    """Reorder the rows of a batch (`KVBatchMeta`) so that each rank has whole groups, one after another.

    size: responses of a group. minibatch: groups of a mini-batch, over all ranks. Ranks get as many groups each, of
    about the same cost. Raises UserError where a group is not of that size (verl adds padding rows, and an agent loop
    may return several rows or none), and where groups cannot be dealt out evenly.
    """
    group = [key.rsplit("_", 2)[0] for key in batch.keys]
    counts = Counter(group)
    for name, count in counts.items():
        if count != size:
            raise UserError(f"the objective compares groups of {size} responses, and group {name} has {count} rows")
    if len(counts) % ranks or minibatch % ranks:
        raise UserError(
            f"the objective compares whole groups: {len(counts)} of them, and {minibatch} a mini-batch "
            f"(actor.ppo_mini_batch_size), must divide evenly by {ranks} data-parallel ranks"
        )
    place = {name: i for i, name in enumerate(counts)}
    order = sorted(range(len(group)), key=lambda i: place[group[i]])
    lengths = [batch.tags[i]["seq_len"] for i in order]
    shares = get_group_balanced_partitions(lengths, [group[i] for i in order], ranks)
    batch.reorder([order[i] for share in shares for i in share])
