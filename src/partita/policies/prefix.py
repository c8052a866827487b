"""Hidden states at every action of a batch, computing each prompt once for all the responses to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch

OVERHEAD = 256  # tokens' worth of time that one more forward pass costs


@dataclass(frozen=True)
class Packed:
    """A batch as plain sequences: what exists of each row, moved to the left.

    prompt: (B, P) int64, right-padded; prompt_length: (B,), at least 1. tokens: (B, W), actions and observations;
    length: (B,). slot: (B, T), the column in `tokens` of each existing entry of the batch.
    """

    prompt: Tensor
    prompt_length: Tensor
    tokens: Tensor
    length: Tensor
    slot: Tensor


def pack(batch: Batch) -> Packed:
    """The sequences of a language batch; `inputs["attend"]` (default: `mask`) says which tokens exist."""
    for table, name in ((batch.inputs, "tokens"), (batch.context, "prompt"), (batch.context, "prompt_mask")):
        if name not in table:
            raise ValueError(f"batch: no {name}; language needs inputs['tokens'], context['prompt'], ['prompt_mask']")
    prompt_mask = batch.context["prompt_mask"]
    prompt_length = prompt_mask.sum(1)
    if len(batch) and int(prompt_length.min()) < 1:
        raise ValueError("prompt_mask: every prompt needs at least one token")
    attend = batch.inputs["attend"] | batch.mask if "attend" in batch.inputs else batch.mask
    length = attend.sum(1)
    width = int(length.max()) if len(batch) else 0
    slot = attend.cumsum(1) - 1
    tokens = batch.inputs["tokens"]
    packed = tokens.new_zeros(len(batch), width + 1)
    packed.scatter_(1, slot.masked_fill(~attend, width), tokens)
    return Packed(
        batch.context["prompt"][:, : int(prompt_length.max()) if len(batch) else 0],
        prompt_length,
        packed[:, :width],
        length,
        slot,
    )


def unique_prompts(packed: Packed, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """One row of each distinct prompt, (G,), and for every row which of them is its own, (B,).

    Rows of one `group` are taken at their word only after a comparison.
    """
    columns = torch.arange(packed.prompt.shape[1], device=packed.prompt.device)
    prompt = packed.prompt.masked_fill(columns >= packed.prompt_length[:, None], -1)
    rows = torch.arange(prompt.shape[0], device=prompt.device)

    def firsts(inverse: Tensor, count: int) -> Tensor:
        return rows.new_full((count,), prompt.shape[0]).scatter_reduce_(0, inverse, rows, "amin")

    if group is not None:
        names, inverse = torch.unique(group, return_inverse=True)
        first = firsts(inverse, names.shape[0])
        if bool((prompt[first][inverse] == prompt).all()):
            return first, inverse
    names, inverse = torch.unique(prompt, dim=0, return_inverse=True)
    return firsts(inverse, names.shape[0]), inverse


def buckets(length: Tensor, count: int = 8) -> list[Tensor]:
    """Rows cut into at most `count` sets of similar length, when padding costs more than extra passes do."""
    order = torch.argsort(length, descending=True, stable=True)
    sizes = length[order].tolist()
    rows = len(sizes)
    best, cost, parts = 1, float("inf"), 1
    while parts <= min(count, rows):
        step = -(-rows // parts)
        spent = sum(len(sizes[i : i + step]) * sizes[i] + OVERHEAD for i in range(0, rows, step))
        if spent < cost:
            best, cost = parts, spent
        parts *= 2
    if best == 1:
        return [torch.arange(rows, device=length.device)]
    return [part.sort().values for part in order.split(-(-rows // best))]


def hidden_states(
    base: Any, packed: Packed, group: Tensor | None, share: bool, agree: Callable[[int], int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (rows (n,), hidden (n, w, D)): column j of `hidden` is what predicts column j of `packed.tokens`.

    share: compute each prompt once, with gradients, where that saves work. agree: how many passes to make, given how
    many there are to make, where other ranks wait for each; those beyond need are of one token, and answer no rows. All
    passes are then among what is returned, so that each has its backward pass, even where nothing follows from it.
    """
    unique: tuple[Tensor, Tensor] | None = None
    if share:
        first, inverse = unique_prompts(packed, group)
        saved = (packed.prompt.shape[0] - first.shape[0]) * (packed.prompt.shape[1] - 1)
        if saved > OVERHEAD // 4 and int(packed.prompt_length.max()) > 1:
            unique = first, inverse
    if unique is not None:
        parts = buckets(packed.length + int(packed.prompt_length[unique[0]].max() - 1) // 4)
    else:
        parts = [p for p in buckets(packed.prompt_length + packed.length) if int(packed.length[p].max()) > 0]
    made = len(parts) + (unique is not None)
    idle = 0 if agree is None else agree(made) - made
    if unique is not None:
        yield from _shared(base, packed, *unique, parts, agree is not None)
    else:
        for rows in parts:
            yield rows, _plain(base, packed, rows)
    for _ in range(idle):
        token = packed.tokens.new_zeros(1, 1)
        yield packed.length.new_zeros(0), base(input_ids=token, use_cache=False).last_hidden_state


def _plain(base: Any, packed: Packed, rows: Tensor) -> Tensor:
    """Whole sequences: prompt and response as one row, padding on the right, plain causal attention."""
    start, length = packed.prompt_length[rows], packed.length[rows]
    response = int(length.max())
    width = int((start + length).max()) - 1
    tokens = torch.zeros(rows.shape[0], width + 1, dtype=torch.int64, device=rows.device)
    prompt = packed.prompt[rows, : int(start.max())]
    columns = torch.arange(prompt.shape[1], device=rows.device)
    tokens.scatter_(1, torch.where(columns < start[:, None], columns, width), prompt)
    columns = torch.arange(response, device=rows.device)
    place = (start[:, None] + columns).masked_fill(columns >= length[:, None], width)
    # Column `width` receives the last token of the longest rows too: nothing follows it.
    tokens.scatter_(1, place.clamp_max(width), packed.tokens[rows, :response])
    hidden = base(input_ids=tokens[:, :width], use_cache=False).last_hidden_state
    index = (start[:, None] - 1 + columns).clamp_max(width - 1)
    return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))


def _shared(
    base: Any, packed: Packed, first: Tensor, inverse: Tensor, parts: list[Tensor], every: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The prompts but for their last tokens once; then, over their keys and values, the rest of each row, by `parts`.

    every: yield the first pass, too, which answers no rows.
    """
    device = packed.prompt.device
    last = (packed.prompt_length - 1)[:, None]
    prefix_length = last[first]
    width = int(prefix_length.max())
    cache = _cache_class()(base.config.get_text_config().num_hidden_layers)
    prefix = packed.prompt[first, :width]
    columns = torch.arange(width, device=device)
    place = columns[None].expand_as(prefix)
    hidden = base(input_ids=prefix, position_ids=place, past_key_values=cache, use_cache=True).last_hidden_state
    if every:
        yield first[:0], hidden
    ragged = bool((prefix_length != width).any())
    seen = columns < prefix_length  # (G, width)
    for rows in parts:
        size = max(int(packed.length[rows].max()), 1)
        tokens = torch.cat((packed.prompt[rows].gather(1, last[rows]), packed.tokens[rows, : size - 1]), 1)
        steps = torch.arange(size, device=device)
        causal = steps[:, None] >= steps
        owner = inverse[rows]
        if ragged:
            allowed = torch.cat((seen[owner][:, None].expand(-1, size, -1), causal.expand(len(rows), -1, -1)), 2)
        else:
            allowed = torch.cat((causal.new_ones(size, width), causal), 1)[None]
        bias = torch.zeros(allowed.shape, dtype=hidden.dtype, device=device).masked_fill_(~allowed, -torch.inf)
        cache.choose(owner)
        yield (
            rows,
            base(
                input_ids=tokens,
                position_ids=last[rows] + steps,
                attention_mask=bias[:, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state,
        )


def selector(owner: Tensor) -> Any:
    """A differentiable x (G, ...) -> x[owner] (n, ...), as a broadcast where groups are whole and in order."""
    count = int(owner.max()) + 1
    each = owner.shape[0] // count
    whole = owner.shape[0] == count * each
    if whole and bool((owner == torch.arange(count, device=owner.device).repeat_interleave(each)).all()):
        return lambda x: x[:count, None].expand(-1, each, *x.shape[1:]).reshape(count * each, *x.shape[1:])
    return lambda x: x.index_select(0, owner)


@functools.cache
def _cache_class() -> type:
    """The cache handed to the model; made on first use, because importing transformers takes seconds."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    class Prefix(CacheLayerMixin):
        """Keeps the keys and values of the first pass, and puts them before those of every later one."""

        is_sliding = False
        keys: Any
        values: Any
        select: Any = None

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                return key_states, value_states
            keys, values = self.select(self.keys), self.select(self.values)
            return torch.cat((keys, key_states), 2), torch.cat((values, value_states), 2)

        def get_seq_length(self) -> int:
            return self.keys.shape[2] if self.is_initialized else 0

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.get_seq_length() + query_length, 0

        def get_max_length(self) -> int:
            return -1

    class Table(Cache):
        layers: Any

        def __init__(self, count: int) -> None:
            super().__init__(layers=[Prefix() for _ in range(count)])

        def choose(self, owner: Tensor) -> None:
            select = selector(owner)
            for layer in self.layers:
                layer.select = select

    return Table
