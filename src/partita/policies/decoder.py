"""`Decoder`: incremental decoding around any Hugging Face causal language model with full attention.

Keys and values live in one preallocated table a layer, (B, heads, capacity, d). Its columns are shared by the
rows: feeding (B, S) tokens fills the next S columns of every row. Entries that are padding in their row are
holes, which a mask hides; positions stay contiguous within each row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from partita.core.checks import check_bool, check_shape
from partita.core.errors import UserError
from partita.policies.layers import gather


class Decoder:
    """The state of B sequences that a model is reading.

    rows: B. width: columns in use. position: (B,) int64, the position that the next token of a row takes.
    """

    def __init__(self, lm: nn.Module, capacity: int = 0) -> None:
        """`lm`: the causal language model. `capacity`: columns to allocate; 0 grows by doubling."""
        self.lm = lm
        self.base: Any = lm.base_model
        self.capacity = capacity
        self.rows = 0
        self.width = 0
        self.position = torch.empty(0, dtype=torch.int64)
        self._cache = _cache_class()(self, lm.config.get_text_config().num_hidden_layers)  # type: ignore[operator, union-attr]
        self._bias: Tensor | None = None  # (B, 1, 1, columns): 0, or -inf at a hole; None while there is no hole

    @property
    def valid(self) -> Tensor:
        """(B, width) bool: the columns that hold a token of their row."""
        if self._bias is None:
            return torch.ones(self.rows, self.width, dtype=torch.bool, device=self.position.device)
        return self._bias[:, 0, 0, : self.width] == 0

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Read right-padded prompts, tokens and mask (P, S); start over with P rows. Returns hidden (P, S, D).

        Every rank of a sharded model must call it; whatever follows, they may do each for itself.
        """
        check_bool("mask", mask)
        check_shape("mask", mask, tokens, "(P, S)")
        gather(self.lm)
        self.rows, self.width, self._bias = tokens.shape[0], 0, None
        self._cache.clear()
        # Padding is on the right, so plain causal attention hides it from every real token.
        place = torch.arange(tokens.shape[1], device=tokens.device)[None].expand_as(tokens)
        hidden = self._forward(tokens, place, None)
        self.width = tokens.shape[1]
        self.position = mask.sum(1)
        if not bool(mask.all()):
            self._bias = _additive(mask, hidden.dtype)[:, None, None]
        return hidden

    @torch.inference_mode()
    def expand(self, index: Tensor) -> None:
        """Make row i a copy of row index[i], index (B,) int64: one prefilled prompt serves its whole group."""
        self._select(index)

    @torch.inference_mode()
    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index` (b,) int64, in that order."""
        self._select(index)

    @torch.inference_mode()
    def take(self, index: Tensor) -> Decoder:
        """A decoder of its own that has read what rows `index` (b,) int64 have; this one stays as it is."""
        out = Decoder(self.lm, self.capacity)
        out.rows, out.width, out.position = index.shape[0], self.width, self.position[index]
        for mine, theirs in zip(self._cache.layers, out._cache.layers, strict=True):
            keys, values = (x[:, :, : self.width].index_select(0, index) for x in (mine.keys, mine.values))
            theirs.lazy_initialization(keys, values)
        if self._bias is not None:
            out._bias = self._bias[index, :, :, : self.width]
        return out

    @torch.inference_mode()
    def rewind(self, length: Tensor) -> None:
        """Forget all but the first `length` (B,) int64 tokens of each row."""
        valid = self.valid
        kept = valid & (valid.cumsum(1) <= length[:, None])
        self.width = int(kept.any(0).nonzero().max()) + 1 if bool(kept.any()) else 0
        self.position = length.clone()
        kept = kept[:, : self.width]
        self._bias = None
        if not bool(kept.all()):
            self._hide(kept)

    @staticmethod
    @torch.inference_mode()
    def join(decoders: Sequence[Decoder]) -> Decoder:
        """One decoder with the rows of all, in order; where some have read more, the others have holes."""
        first = decoders[0]
        if len(decoders) == 1:
            return first
        out = Decoder(first.lm, max(d.capacity for d in decoders))
        out.rows, out.width = sum(d.rows for d in decoders), max(d.width for d in decoders)
        out.position = torch.cat([d.position for d in decoders])
        columns = max(out.capacity, out.width)
        for place, layer in enumerate(out._cache.layers):
            tables = []
            for name in ("keys", "values"):
                old = getattr(first._cache.layers[place], name)
                table = old.new_zeros(out.rows, old.shape[1], columns, old.shape[3])
                row = 0
                for d in decoders:
                    table[row : row + d.rows, :, : d.width] = getattr(d._cache.layers[place], name)[:, :, : d.width]
                    row += d.rows
                tables.append(table)
            layer.lazy_initialization(*tables)
        valid = torch.cat([nn.functional.pad(d.valid, (0, out.width - d.width)) for d in decoders])
        if not bool(valid.all()):
            out._hide(valid)
        return out

    def _hide(self, valid: Tensor) -> None:
        """Make holes of the columns where `valid` (B, width) is false."""
        keys = self._cache.layers[0].keys
        bias = torch.zeros(valid.shape[0], 1, 1, keys.shape[2], dtype=keys.dtype, device=keys.device)
        bias[:, 0, 0, : self.width] = _additive(valid, keys.dtype)
        self._bias = bias

    @torch.inference_mode()
    def feed(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read more tokens (B, S), where `mask` (B, S) says which exist (default: all). Returns hidden (B, S, D).

        Padding may stand anywhere; what is returned there means nothing.
        """
        check_shape("tokens", tokens, (self.rows, tokens.shape[1]), "(B, S)")
        size, start = tokens.shape[1], self.width
        if start + size > self._cache.columns():
            self._grow(start + size)
        if mask is None and size == 1:
            view = None if self._bias is None else self._bias[..., : start + 1]
            hidden = self._forward(tokens, self.position[:, None], view)
            self.position = self.position + 1
            self.width = start + 1
            return hidden
        if mask is None:
            mask = torch.ones_like(tokens, dtype=torch.bool)
        check_bool("mask", mask)
        check_shape("mask", mask, tokens, "(B, S)")
        if self._bias is None:
            dtype = self._cache.layers[0].keys.dtype
            self._bias = torch.zeros(self.rows, 1, 1, self._cache.columns(), dtype=dtype, device=tokens.device)
        place = (self.position[:, None] + mask.cumsum(1) - 1).clamp_min_(0)
        # A token sees the past of its row, earlier tokens of this call, and itself (so that no softmax is empty).
        eye = torch.ones(size, size, dtype=torch.bool, device=tokens.device)
        fresh = (mask[:, None] & eye.tril()) | (eye.tril() & eye.triu())
        past = self._bias[..., :start].expand(-1, -1, size, -1)
        hidden = self._forward(tokens, place, torch.cat((past, _additive(fresh, past.dtype)[:, None]), -1))
        self._bias[:, 0, 0, start : start + size] = _additive(mask, past.dtype)
        self.position = self.position + mask.sum(1)
        self.width = start + size
        return hidden

    def _forward(self, tokens: Tensor, place: Tensor, bias: Tensor | None) -> Tensor:
        return self.base(
            input_ids=tokens, position_ids=place, attention_mask=bias, past_key_values=self._cache, use_cache=True
        ).last_hidden_state

    def _select(self, index: Tensor) -> None:
        columns = max(self.capacity, self.width)
        self._cache.rebuild(index, self.width, columns)
        if self._bias is not None:
            bias = self._bias.new_zeros(index.shape[0], 1, 1, columns)
            bias[..., : self.width] = self._bias[index, :, :, : self.width]
            self._bias = bias
        self.position = self.position[index]
        self.rows = index.shape[0]

    def _grow(self, least: int) -> None:
        columns = max(least, self.capacity, 2 * self.width)
        self._cache.rebuild(None, self.width, columns)
        if self._bias is not None:
            self._bias = torch.nn.functional.pad(self._bias, (0, columns - self._bias.shape[-1]))


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def last_hidden(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, D): of hidden (B, S, D), the entry at the last true column of mask (B, S)."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * columns).amax(1).sub(1).clamp_min(0)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


@functools.cache
def _cache_class() -> type:
    """The cache handed to the model; made on first use, because importing transformers takes seconds."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    class Columns(CacheLayerMixin):
        """Keys and values (B, heads, columns, d) of a layer; new ones are written in place."""

        is_sliding = False
        keys: Any
        values: Any

        def __init__(self, owner: Decoder) -> None:
            super().__init__()
            self.owner = owner

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                return key_states, value_states
            start = self.owner.width
            end = start + key_states.shape[2]
            self.keys[:, :, start:end] = key_states
            self.values[:, :, start:end] = value_states
            return self.keys[:, :, :end], self.values[:, :, :end]

        def get_seq_length(self) -> int:
            return self.owner.width

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.owner.width + query_length, 0

        def get_max_length(self) -> int:
            return -1

        def rebuild(self, index: Tensor | None, width: int, columns: int) -> None:
            for name in ("keys", "values"):
                old = getattr(self, name)
                count = old.shape[0] if index is None else index.shape[0]
                new = old.new_empty(count, old.shape[1], columns, old.shape[3])
                new[:, :, :width] = old[:, :, :width] if index is None else old[:, :, :width].index_select(0, index)
                setattr(self, name, new)

    class Table(Cache):
        layers: Any

        def __init__(self, owner: Decoder, layers: int) -> None:
            super().__init__(layers=[Columns(owner) for _ in range(layers)])

        def columns(self) -> int:
            return self.layers[0].keys.shape[2]

        def clear(self) -> None:
            for layer in self.layers:
                layer.keys, layer.values, layer.is_initialized = None, None, False

        def rebuild(self, index: Tensor | None, width: int, columns: int) -> None:
            for layer in self.layers:
                layer.rebuild(index, width, columns)

    return Table


def check_attention(lm: nn.Module) -> None:
    """Raise UserError for a model that does not attend to its whole past by explicit positions."""
    config: Any = lm.config.get_text_config()  # type: ignore[operator, union-attr]
    kind = getattr(config, "model_type", type(lm).__name__)
    context = getattr(config, "max_position_embeddings", None) or float("inf")
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    layers = set(getattr(config, "layer_types", None) or ("full_attention",))
    odd = layers - {"full_attention"}
    if window is not None and window >= context:
        odd, window = odd - {"sliding_attention"}, None
    if odd or window is not None:
        what = ", ".join(sorted(odd)) or f"a sliding window of {window}"
        raise UserError(f"model: type {kind} uses {what}; only full attention is supported, choose such a model")
    local = "local" in (getattr(config, "attention_layers", None) or ())
    stateful = getattr(lm, "_is_stateful", False) or getattr(config, "is_encoder_decoder", False)
    explicit = "position_ids" in inspect.signature(lm.base_model.forward).parameters  # type: ignore[union-attr]
    if local or stateful or getattr(config, "alibi", False) or not explicit:
        raise UserError(
            f"model: type {kind} is not a decoder with full attention and explicit positions; "
            "choose a Llama-, Qwen-, GPT-2- or similar type"
        )
