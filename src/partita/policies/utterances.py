"""`Utterances`: trajectories as sequences of decisions, an utterance each, and fresh utterances to compare with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from partita.core.batch import Batch
from partita.policies.decoder import Decoder
from partita.policies.prefix import pack
from partita.policies.sampling import Sampling, sample, uniforms

if TYPE_CHECKING:
    from partita.policies.language import LanguagePolicy

CHUNK = 256  # trajectories that are read at once where no gradient is wanted


@dataclass(frozen=True)
class Utterances:
    """N trajectories of at most K utterances. The history before an utterance is a prefix of the trajectory.

    tokens: (N, W) int64, prompt, utterances and observations, right-padded. length: (N,) int64. count: (N,) int64,
    utterances of each. history, end: (N, K) int64, columns of the last token before each utterance and of its own last
    token. reward: (N, K), earned by each utterance. Entries at `count` and beyond are zero.
    """

    tokens: Tensor
    length: Tensor
    count: Tensor
    history: Tensor
    end: Tensor
    reward: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def real(self) -> Tensor:
        """(N, K) bool: the utterances that there are."""
        return torch.arange(self.history.shape[1], device=self.count.device) < self.count[:, None]

    def __getitem__(self, rows: Tensor | slice) -> Utterances:
        """The trajectories of an index (n,), a mask (N,) or a slice."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def trimmed(self) -> Utterances:
        """Without columns that no trajectory uses."""
        width, turns = (int(x.max()) if len(self) else 0 for x in (self.length, self.count))
        cut = {n: getattr(self, n)[:, :turns] for n in ("history", "end", "reward")}
        return replace(self, tokens=self.tokens[:, :width], **cut)

    def widened(self, width: int, turns: int) -> Utterances:
        """With at least `width` columns of tokens and `turns` of utterances."""
        more = {n: _wider(getattr(self, n), turns) for n in ("history", "end", "reward")}
        return replace(self, tokens=_wider(self.tokens, width), **more)


def _wider(table: Tensor, width: int) -> Tensor:
    return pad(table, (0, max(width - table.shape[1], 0)))


def read(batch: Batch) -> tuple[Utterances, Tensor]:
    """The utterances of a language batch, and which of them each step belongs to, (B, T) int64.

    An utterance is a run of steps on which the policy acted, within one `turn` (where the batch has turns); steps of
    the world belong to the utterance before them, and to the first one where there is none. Rewards of all its steps
    are an utterance's own.
    """
    packed, mask = pack(batch), batch.mask
    begins = mask.clone()
    begins[:, 1:] &= (
        ~mask[:, :-1] if batch.turn is None else ~(mask[:, :-1] & (batch.turn[:, 1:] == batch.turn[:, :-1]))
    )
    rank = begins.cumsum(1) - 1
    count = rank[:, -1] + 1 if rank.shape[1] else rank.new_zeros(len(batch))
    rank = rank.clamp_min(0)
    turns = max(int(count.max()) if len(batch) else 0, 1)
    place = packed.prompt_length[:, None] + packed.slot  # column of each step in the whole sequence
    zero = place.new_zeros(len(batch), turns)
    first = zero.scatter_add(1, rank, place * begins)
    end = zero.scatter_reduce(1, rank, place * mask, "amax")
    reward = batch.need("reward")
    real = torch.arange(turns, device=mask.device) < count[:, None]
    whole = Utterances(
        tokens=_joined(packed.prompt, packed.prompt_length, packed.tokens, packed.length),
        length=packed.prompt_length + packed.length, count=count, history=(first - 1) * real, end=end,
        reward=reward.new_zeros(len(batch), turns).scatter_add(1, rank, reward),
    )  # fmt: skip
    return whole.trimmed(), rank


def _joined(prompt: Tensor, start: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
    """Prompts and what follows as single right-padded rows."""
    width = int((start + length).max()) if len(start) else 0
    out = prompt.new_zeros(len(start), width + 1)
    columns = torch.arange(prompt.shape[1], device=prompt.device)
    out.scatter_(1, torch.where(columns < start[:, None], columns, width), prompt)
    columns = torch.arange(tokens.shape[1], device=prompt.device)
    out.scatter_(1, (start[:, None] + columns).masked_fill(columns >= length[:, None], width), tokens)
    return out[:, :width]


def propose(
    policy: LanguagePolicy, utterances: Utterances, sampling: Sampling, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A fresh utterance of the policy after every history: tokens (N, K, L) and their number (N, K), 0 beyond `count`.

    Each trajectory is read once; its keys and values serve all its histories.
    """
    parts = [_propose(policy, utterances[rows], sampling, generator) for rows in _chunks(utterances)]
    size = max(tokens.shape[2] for tokens, _ in parts)
    return torch.cat([pad(tokens, (0, size - tokens.shape[2])) for tokens, _ in parts]), torch.cat(
        [n for _, n in parts]
    )


def _chunks(utterances: Utterances) -> tuple[Tensor, ...]:
    return torch.arange(len(utterances), device=utterances.tokens.device).split(CHUNK)


def _propose(
    policy: LanguagePolicy, utterances: Utterances, sampling: Sampling, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    columns = torch.arange(utterances.tokens.shape[1], device=utterances.tokens.device)
    decoder = Decoder(policy.lm)
    with torch.no_grad():
        hidden: Any = decoder.prefill(utterances.tokens, columns < utterances.length[:, None])
        row, turn = utterances.real.nonzero(as_tuple=True)
        last = utterances.history[row, turn]
        decoder.expand(row)
        decoder.rewind(last + 1)
        limit = None
        if policy.context is not None:
            limit = (policy.context - last - 1).clamp(1, sampling.max_tokens)
        uniform = uniforms(sampling.max_tokens, len(row), generator, hidden.device)
        stopper = policy.stopper(sampling.stop)
        out, _, _ = sample(decoder, hidden[row, last], policy.head, stopper, sampling, uniform, limit=limit)
    size, turns = out.tokens.shape[1], utterances.history.shape[1]
    tokens = out.tokens.new_zeros(len(utterances), turns, size)
    count = utterances.count.new_zeros(len(utterances), turns)
    tokens[row, turn], count[row, turn] = out.tokens, out.mask.sum(1)
    return tokens, count
