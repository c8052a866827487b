"""Texts to tokens, those of a data set once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from partita.core.errors import UserError

ENTRY = 64  # what an entry costs beside its tokens, in tokens


class Tokens:
    """The token ids of texts; those of texts that come back (a data set's) are kept, up to `limit` tokens.

    A text with special tokens is a prompt: what the tokenizer puts before a text stays, the end of sequence that some
    put behind it goes. When the limit is reached, what was kept first is forgotten first.
    """

    def __init__(self, tokenizer: Any, limit: int = 2**25) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.kept: tuple[dict[str, array[int]], dict[str, array[int]]] = ({}, {})
        self.size = 0

    def __call__(self, texts: Sequence[str], special: bool = True, keep: bool = False) -> list[Sequence[int]]:
        """The ids of each text; `special`: as a prompt; `keep`: remember them."""
        if not keep:
            return self._rows(texts, special)
        known = self.kept[special]
        found: dict[str, Sequence[int]] = {text: known[text] for text in texts if text in known}
        fresh = [text for text in dict.fromkeys(texts) if text not in found]
        for text, ids in zip(fresh, self._rows(fresh, special), strict=True):
            found[text] = known[text] = array("i", ids)
            self.size += len(ids) + ENTRY
        while self.size > self.limit:
            side = max(self.kept, key=len)
            self.size -= len(side.pop(next(iter(side)))) + ENTRY
        return [found[text] for text in texts]

    def _rows(self, texts: Sequence[str], special: bool) -> list[Sequence[int]]:
        if not texts:
            return []
        rows = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        eos, word = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        if special:
            for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
                if row and row[-1] == eos and not text.endswith(word):
                    rows[i] = row = row[:-1]  # a tokenizer that closes every text: the response is still to come
                if not row:
                    raise UserError(
                        f"prompt {i}: it is empty, and the tokenizer starts no text by itself; write a prompt"
                    )
        return rows


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (N, P), right-padded, and the mask (N, P) of what they hold."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    mask = torch.arange(max(map(len, rows), default=0)) < lengths[:, None]
    tokens = torch.full(mask.shape, pad, dtype=torch.int64)
    tokens[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    return tokens, mask
