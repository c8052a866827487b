"""`Session`: episodes of several turns on one decoder, and their transcript as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.ranks import gathered, own_rows
from partita.policies.decoder import Decoder, last_hidden
from partita.policies.sampling import COMPACT, Generation, Sampling, sample, together, uniforms

if TYPE_CHECKING:
    from partita.policies.language import LanguagePolicy


@dataclass(frozen=True)
class _Block:
    """Columns of the transcript: (B, S) each; `attend` tokens that exist, `mask` those the policy drew; `turn` (B,)."""

    tokens: Tensor
    attend: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor
    temperature: Tensor
    turn: Tensor


class Session:
    """B episodes in parallel: read, act, read, act. All tensors that go in or out have B rows.

    A row may wait while others act (its world has not answered); its turns are its own count, and so are its random
    numbers, which therefore do not depend on who waited for whom. Rows that no longer act are dropped from the decoder
    when that pays; who asks need not know.
    """

    def __init__(self, policy: LanguagePolicy, prompts: Sequence[str], group_size: int = 1) -> None:
        """Read the prompts; row i belongs to prompt i // group_size. Raises UserError for a prompt too long."""
        self.policy = policy
        tokens, mask = policy.encode(prompts)
        policy.check_room(mask, 1)
        self.group = torch.arange(len(prompts), device=tokens.device).repeat_interleave(group_size)
        self.prompt, self.prompt_mask = tokens[self.group], mask[self.group]
        self._decoder = Decoder(policy.lm)
        self._held = torch.arange(len(self.group), device=tokens.device)[
            own_rows(len(self.group))
        ]  # the decoder's rows
        line, (first, last) = self.group[self._held], _ends(self.group[self._held])
        hidden = last_hidden(self._decoder.prefill(tokens[first:last], mask[first:last]), mask[first:last])
        self._decoder.expand(line - first)
        self._hidden = hidden[line - first]
        self._unread = torch.full_like(self.group, -1)  # the last action token, not yet fed
        self._unfed = False
        self._used = self.prompt_mask.sum(1)
        self._blocks: list[_Block] = []
        self._uniform: list[Tensor] = []  # of every turn: (max_tokens, B)
        self.turns = torch.zeros_like(self.group)  # (B,) actions so far

    def __len__(self) -> int:
        return len(self.group)

    @property
    def room(self) -> Tensor:
        """(B,) int64: tokens that still fit into the context of each row."""
        if self.policy.context is None:
            return torch.full_like(self._used, 1 << 40)
        return self.policy.context - self._used

    def act(
        self,
        sampling: Sampling,
        generator: torch.Generator,
        live: Tensor | None = None,
        entropy: bool = False,
        schedule: Tensor | None = None,
        waiting: Tensor | None = None,
    ) -> Generation:
        """One action for every row of `live` (B,) bool (default: all); others get no tokens.

        Rows whose context has no room for `sampling.max_tokens` more do not act either: end their episodes as
        truncated. Rows that are neither in `live` nor in `waiting` are taken to be over: they cannot act again.
        """
        device, count = self.group.device, len(self)
        live = torch.ones_like(self.group, dtype=torch.bool) if live is None else live.to(device)
        uniform = self._numbers(live, sampling.max_tokens, generator)
        live = live & (self.room >= sampling.max_tokens)
        if self._unfed:
            self.observe([""] * count)
        alive = live[self._held]
        kept = (alive if waiting is None else alive | waiting.to(device)[self._held]).nonzero()[:, 0]
        if 0 < len(kept) <= COMPACT * len(self._held):
            self._decoder.keep(kept)
            self._hidden, self._held, alive = self._hidden[kept], self._held[kept], alive[kept]
        if not bool(alive.any()):
            out = _silence(count, sampling.temperature, device, entropy)
        else:
            head, stopper = self.policy.head, self.policy.stopper(sampling.stop)
            part, unread, self._hidden = sample(
                self._decoder, self._hidden, head, stopper, sampling, uniform[:, self._held], schedule, entropy, alive
            )
            out = _scatter(part, self._held, count)
            self._unread[self._held] = unread
            self._unfed = True
        out = self._together(out)
        self._used = self._used + out.mask.sum(1)
        ent = torch.zeros_like(out.logp) if out.entropy is None else out.entropy
        self._blocks.append(_Block(out.tokens, out.mask, out.mask, out.logp, ent, out.temperature, self.turns))
        self.turns = self.turns + live
        return replace(
            out, texts=self.policy.decode(out.tokens, out.mask), prompt=self.prompt, prompt_mask=self.prompt_mask,
            group=self.group,
        )  # fmt: skip

    def _together(self, out: Generation) -> Generation:
        """What all ranks have drawn, each for rows of its own."""
        mine = own_rows(len(self))
        held = {f.name: getattr(out, f.name) for f in fields(out)}
        own: dict[str, Any] = {name: x[mine] for name, x in held.items() if isinstance(x, Tensor)}
        return together(replace(out, **own), len(self))

    def _numbers(self, live: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers (steps, B): those of each row's own turn, drawn when the first row comes to it."""
        if not bool(live.any()):
            return torch.zeros(steps, len(self), dtype=torch.float64, device=live.device)
        turns = self.turns[live]
        first, last = int(turns.min()), int(turns.max())
        while len(self._uniform) <= last:
            self._uniform.append(uniforms(steps, len(self), generator, live.device))
        if first == last:
            return self._uniform[first]
        table = torch.stack(self._uniform)  # (turns, steps, B)
        own = self.turns.clamp(max=last).expand(1, steps, -1)
        return table.gather(0, own)[0]

    def observe(self, texts: Sequence[str]) -> Tensor:
        """Each row reads a text, B of them; "" for rows that read nothing. Returns (B,) bool: all of it fitted.

        What exceeds the context is cut off. Rows that are over and were dropped read nothing.
        """
        if len(texts) != len(self):
            raise ValueError(f"texts: expected B = {len(self)}, got {len(texts)}")
        tokens, mask = self.policy.encode(texts, special=False)
        columns = torch.arange(mask.shape[1], device=mask.device)
        whole = mask.sum(1) <= self.room
        if tokens.shape[1]:
            held = torch.zeros_like(whole).index_fill_(0, self._held, True)
            held = gathered(held[own_rows(len(self))], len(self))
            mask = mask & (columns < self.room[:, None]) & held[:, None]
        zero = torch.zeros(tokens.shape, device=tokens.device)
        if tokens.shape[1]:
            before = (self.turns - 1).clamp_min(0)
            self._blocks.append(_Block(tokens, mask, torch.zeros_like(mask), zero, zero, zero + 1, before))
            self._used = self._used + mask.sum(1)
        tokens = torch.cat((self._unread[:, None].clamp_min(0), tokens), 1)[self._held]
        mask = torch.cat((self._unread[:, None] >= 0, mask), 1)[self._held]
        if not self._unfed:
            tokens, mask = tokens[:, 1:], mask[:, 1:]
        self._unfed = False
        self._unread.fill_(-1)
        if tokens.shape[1]:
            fresh = last_hidden(self._decoder.feed(tokens, mask), mask)
            self._hidden = torch.where(mask.any(1, keepdim=True), fresh, self._hidden)
        return whole

    def batch(self) -> Batch:
        """The episodes so far: actions under `mask`, observations under `inputs["attend"]` only.

        Fields: mask, logp, entropy (zero where it was not asked for), turn (an observation belongs to the turn
        before it), group; inputs tokens, attend, temperature; context prompt, prompt_mask.
        """
        if not self._blocks:
            raise ValueError("session: nobody has acted yet, so there is no batch")
        blocks = self._blocks
        attend = torch.cat([b.attend for b in blocks], 1)
        width = max(int(attend.sum(1).max()), 1)
        slot = (attend.cumsum(1) - 1).masked_fill(~attend, width)

        def left(values: list[Tensor]) -> Tensor:
            joined = torch.cat(values, 1)
            out = joined.new_zeros(joined.shape[0], width + 1)
            return out.scatter_(1, slot, joined)[:, :width].contiguous()

        temperature = left([b.temperature for b in blocks])
        return Batch(
            mask=left([b.mask for b in blocks]),
            logp=left([b.logp for b in blocks]),
            entropy=left([b.entropy for b in blocks]),
            turn=left([b.turn[:, None].expand_as(b.tokens) for b in blocks]),
            group=self.group,
            inputs={
                "tokens": left([b.tokens for b in blocks]),
                "attend": left([b.attend for b in blocks]),
                "temperature": temperature.masked_fill(temperature == 0, 1.0),
            },
            context={"prompt": self.prompt, "prompt_mask": self.prompt_mask},
        )


def _ends(group: Tensor) -> tuple[int, int]:
    """The first of sorted indices, and one beyond the last."""
    return (int(group[0]), int(group[-1]) + 1) if len(group) else (0, 0)


def _scatter(part: Generation, rows: Tensor, count: int) -> Generation:
    """The generation of some rows as that of all, (count, T), with nothing in the others."""

    def spread(value: Tensor) -> Tensor:
        return value.new_zeros(count, *value.shape[1:]).index_copy_(0, rows, value)

    return Generation(
        tokens=spread(part.tokens),
        mask=spread(part.mask),
        logp=spread(part.logp),
        entropy=None if part.entropy is None else spread(part.entropy),
        finished=spread(part.finished),
        temperature=part.temperature[:1].expand(count, -1).clone(),
    )


def _silence(count: int, temperature: float, device: torch.device, entropy: bool) -> Generation:
    """A turn in which nobody acts: one column of padding."""
    zero = torch.zeros(count, 1, device=device)
    no = torch.zeros(count, 1, dtype=torch.bool, device=device)
    ent = zero if entropy else None
    return Generation(torch.zeros_like(no, dtype=torch.int64), no, zero, ent, no[:, 0].clone(), zero + temperature)
