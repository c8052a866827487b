"""When a response ends: end-of-sequence tokens, and stop strings for any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stopper:
    """Which tokens end a response for certain, and which may complete a stop string.

    certain: (V,) bool, end of sequence, or the text of the token alone contains a stop string.
    suspect: (V,) bool or None, tokens that hold the last character of a stop string; only after one of them is
        the tail of a response decoded. None when no such token is left open.
    """

    certain: Tensor
    suspect: Tensor | None
    strings: tuple[str, ...]
    tokenizer: Any
    anchor: tuple[int, ...]
    tail: int

    def hits(self, token: Tensor, past: Sequence[Tensor], live: Tensor) -> Tensor:
        """(b,) bool: rows whose response ends with `token` (b,).

        past: the tokens before it, newest last, (b,) each. live: (b,) bool, rows that are still open.
        """
        ended = self.certain[token]
        if self.suspect is None:
            return ended
        open_rows = (self.suspect[token] & live & ~ended).nonzero()[:, 0]
        if open_rows.numel() == 0:
            return ended
        recent = [*past[-self.tail :], token] if self.tail else [token]
        tails = torch.stack([t[open_rows] for t in recent], 1).tolist()
        found = [any(s in text for s in self.strings) for text in _texts(self.tokenizer, self.anchor, tails)]
        ended = ended.clone()
        ended[open_rows[torch.tensor(found, device=open_rows.device)]] = True
        return ended


def texts_of(tokenizer: Any, rows: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """The text of each row of ids, without special tokens."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:  # the same text, ten times sooner
        return tuple(core.decode_batch([list(row) for row in rows], skip_special_tokens=True))
    return tuple(tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _texts(tokenizer: Any, anchor: tuple[int, ...], rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row of ids as it reads after the anchor (so that no leading space is lost)."""
    lead = len(texts_of(tokenizer, [anchor])[0]) if anchor else 0
    return [t[lead:] for t in texts_of(tokenizer, [[*anchor, *row] for row in rows])]


def stopper(tokenizer: Any, vocab: int, strings: tuple[str, ...], device: torch.device) -> Stopper:
    """Tables for a model with `vocab` logits, from the decoded text of every token."""
    certain = torch.zeros(vocab, dtype=torch.bool)
    certain[tokenizer.eos_token_id] = True
    anchor = tuple(tokenizer.encode("a", add_special_tokens=False))
    suspect = torch.zeros(vocab, dtype=torch.bool)
    if strings:
        # Ids beyond the tokenizer (padded embeddings) have no text.
        known = min(vocab, len(tokenizer))
        ends = tuple({s[-1] for s in strings})
        for i, text in enumerate(_texts(tokenizer, anchor, [[i] for i in range(known)])):
            if any(s in text for s in strings):
                certain[i] = True
            elif any(c in text for c in ends) or ("\ufffd" in text and not all(map(str.isascii, ends))):
                suspect[i] = True
    # A token may stand for no character at all (part of one, a special token); leave room for that.
    tail = max((2 * max(len(s.encode()) for s in strings) + 2) if strings else 0, 0)
    return Stopper(
        certain.to(device),
        suspect.to(device) if bool(suspect.any()) else None,
        strings,
        tokenizer,
        anchor,
        tail,
    )


def closed(tokens: Tensor, mask: Tensor, rows: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """Right-padded tokens (B, T) with `eos` after the last token of the rows that do not end in it already."""
    length = mask.sum(1, keepdim=True)
    final = tokens.gather(1, (length - 1).clamp_min(0)) if tokens.shape[1] else torch.full_like(length, -1)
    more = (rows[:, None] & ((final != eos) | (length == 0))).long()
    tokens = torch.cat((tokens, torch.zeros_like(length)), 1)
    tokens = tokens.scatter(1, length, torch.where(more > 0, eos, tokens.gather(1, length)))
    mask = torch.arange(tokens.shape[1], device=mask.device) < length + more
    width = int(mask.sum(1).max()) if len(mask) else 0
    return tokens[:, :width], mask[:, :width]
