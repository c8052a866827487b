"""A tree of responses over one decoder: what branches have in common is computed once.

Every branch has a slot, its row in the tables of tokens and log-probabilities; a branch that forks is copied into a
free slot, its keys and values with it. Slots, and the random numbers that go with them, are those that plain sampling
of as many responses would use: a tree that forks at the prompt only draws what `LanguagePolicy.generate` draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.policies.decoder import Decoder, last_hidden
from partita.policies.sampling import COMPACT, Generation, Sampling, draw, uniforms

if TYPE_CHECKING:
    from partita.policies.language import LanguagePolicy

FREE, OPEN, CLOSED = 0, 1, 2


class Tree:
    """Branches of responses to P prompts, at most `width` of each prompt at any time; slot s answers prompt s // width.

    Per slot, S = P * width of them: owner (its prompt), state (FREE, OPEN, CLOSED), length, finished (ended by itself,
    not cut), and (S, T) tables tokens, logp, sampler_logp and entropy. `slot` (R,) names the slot of each branch that
    the decoder holds. Costs so far: `decoded`, tokens that were computed, of branches pruned since too, and `kv_work`,
    the positions that they attended to: a token after a prompt of P tokens and t of the response attends to P + t.
    Prompts are read once for all branches and not counted.

    logp is the policy's own log-probability, at `sampling.temperature`, of every token. sampler_logp is that of the
    distribution which chose the token given the branch so far: logp where it was drawn, 0 where it was forced.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        prompts: Sequence[str],
        width: int,
        sampling: Sampling,
        generator: torch.Generator,
        shelf: bool = False,
    ) -> None:
        """Read the prompts; no branch is open yet. shelf: keep what closed branches have read, for `resume`.

        sampling: temperature, max_tokens and stop strings. Raises UserError for a prompt without room for the response.
        """
        if sampling.truncates or sampling.greedy:
            raise ValueError("sampling: a tree draws from the whole tempered softmax")
        self.policy, self.width, self.sampling = policy, width, sampling
        self.prompt, self.prompt_mask = policy.encode(prompts)
        policy.check_room(self.prompt_mask, sampling.max_tokens)
        device, count, steps = self.prompt.device, len(prompts) * width, sampling.max_tokens
        self._roots = Decoder(policy.lm, capacity=self.prompt.shape[1] + steps)
        hidden = self._roots.prefill(self.prompt, self.prompt_mask)
        self._root_hidden = last_hidden(hidden, self.prompt_mask)
        self.uniform = uniforms(steps, count, generator, device)
        self.stopper, self.head = policy.stopper(sampling.stop), policy.head
        self.owner = torch.arange(len(prompts), device=device).repeat_interleave(width)
        self.start = self.prompt_mask.sum(1)[self.owner]
        self.state = torch.zeros(count, dtype=torch.int8, device=device)
        self.length = torch.zeros(count, dtype=torch.int64, device=device)
        self.finished = torch.zeros(count, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(count, steps, dtype=torch.int64, device=device)
        self.logp = torch.zeros(count, steps, device=device)
        self.sampler_logp, self.entropy = torch.zeros_like(self.logp), torch.zeros_like(self.logp)
        self.slot = torch.zeros(0, dtype=torch.int64, device=device)
        self.decoded = self.kv_work = 0
        self._decoder: Decoder | None = None
        self._hidden = self._root_hidden[:0]
        self._logits: Tensor | None = None
        self._marks: dict[int, Tensor] = {}
        self._shelf: list[tuple[list[int], Decoder]] | None = [] if shelf else None

    @property
    def open(self) -> Tensor:
        """(R,) bool: held branches that are still growing."""
        return self.state[self.slot] == OPEN

    @property
    def growing(self) -> bool:
        """Whether any branch is open."""
        return bool((self.state == OPEN).any())

    @property
    def logits(self) -> Tensor:
        """(R, V): of the next token of each held branch."""
        if self._logits is None:
            with torch.inference_mode():
                self._logits = self.head(self._hidden)
        return self._logits

    def free(self, prompt: int, count: int) -> list[int]:
        """The first `count` free slots of a prompt."""
        first = prompt * self.width
        found = (self.state[first : first + self.width] == FREE).nonzero()[:count, 0].tolist()
        if len(found) < count:
            raise ValueError(f"prompt {prompt}: {count} branches were asked for, and {len(found)} slots are free")
        return [first + i for i in found]

    def begin(self, slots: Sequence[int]) -> None:
        """Open branches in `slots` at their prompts."""
        new = self._index(slots)
        self._occupy(new, new, torch.zeros_like(new))
        owner = self.owner[new]
        self._enter([self._roots.take(owner)], [self._root_hidden[owner]], [new])

    @torch.inference_mode()
    def fork(self, rows: Tensor, slots: Sequence[int]) -> None:
        """Copy the held branches `rows` (n,) into free `slots`, one each; copies are the last rows."""
        assert self._decoder is not None
        new = self._index(slots)
        index = torch.cat((torch.arange(len(self.slot), device=rows.device), rows))
        self._occupy(new, self.slot[rows], self.length[self.slot[rows]])
        self._decoder.expand(index)
        self._logits = None if self._logits is None else self._logits[index]
        self._hidden, self.slot = self._hidden[index], torch.cat((self.slot, new))

    def prune(self, slots: Sequence[int]) -> None:
        """Give up branches: their slots are free again."""
        gone = self._index(slots)
        self.state[gone], self.length[gone], self.finished[gone] = FREE, 0, False
        self._hold((~torch.isin(self.slot, gone)).nonzero()[:, 0])

    def close(self, slots: Sequence[int]) -> None:
        """Cut branches off where they are."""
        self.state[self._index(slots)] = CLOSED
        self._settle(all_of_them=True)

    def mark(self) -> None:
        """Remember where open branches are now, so that others can `resume` there."""
        rows = self.open.nonzero()[:, 0]
        for length in set(self.length[self.slot[rows]].tolist()):
            here = rows[self.length[self.slot[rows]] == length]
            table = self._marks.setdefault(length, self._hidden.new_zeros(len(self.state), self._hidden.shape[1]))
            table[self.slot[here]] = self._hidden[here]

    def resume(self, source: int, length: int, slots: Sequence[int]) -> None:
        """Open branches in `slots` that go on from the first `length` tokens of the closed branch `source`.

        Nothing is read again. length: 0, or one at which the branch was marked.
        """
        if length == 0:
            return self.begin(slots)
        if self._shelf is None:
            raise ValueError("shelf: this tree does not keep closed branches; make it with shelf=True")
        new = self._index(slots)
        many = torch.full_like(new, source)
        held, decoder = next((h, d) for h, d in reversed(self._shelf) if source in h)
        part = decoder.take(torch.full_like(new, held.index(source)))
        part.rewind(self.start[many] + length)
        self._occupy(new, many, torch.full_like(new, length))
        self._enter([part], [self._marks[length][many]], [new])

    def decode(self, count: int) -> None:
        """Draw up to `count` more tokens of every open branch."""
        for _ in range(count):
            if not self.growing:
                break
            self.advance()
        self._settle(all_of_them=True)

    @torch.inference_mode()
    def advance(self, forced: Tensor | None = None) -> None:
        """One more token of every open branch: what `forced` (R,) says, or drawn where that is -1."""
        assert self._decoder is not None
        rows, tau = self.open, self.sampling.temperature
        at = self.length[self.slot].clamp_max(self.sampling.max_tokens - 1)
        logits, self._logits = self.logits, None
        own = None if forced is None else (logits / tau).log_softmax(1).gather(1, forced.clamp_min(0)[:, None])[:, 0]
        token, logp, entropy = draw(logits.clone(), self.uniform[at, self.slot], tau, self.sampling, True)
        sampler = logp
        if forced is not None and own is not None:
            told = forced >= 0
            token, logp = torch.where(told, forced, token), torch.where(told, own, logp)
            sampler = torch.where(told, 0.0, sampler)
        slot, place = self.slot[rows], at[rows]
        assert entropy is not None
        for table, value in (
            (self.tokens, token), (self.logp, logp), (self.sampler_logp, sampler), (self.entropy, entropy),
        ):  # fmt: skip
            table[slot, place] = value[rows]
        self.decoded += len(slot)
        self.kv_work += int((self.start[slot] + place).sum())
        ended = (self.stopper.hits(token, self._past(at), rows) & rows)[rows]
        self.length[slot] = place + 1
        self.finished[slot] = ended
        self.state[slot] = torch.where(ended | (place + 1 >= self.sampling.max_tokens), CLOSED, OPEN).to(torch.int8)
        kept = self._settle()
        if self._decoder is None:
            return
        token = token if kept is None else token[kept]
        # Rows that are over read along until they are dropped, at a position that always exists.
        self._decoder.position = torch.where(self.open, self._decoder.position, 0)
        self._hidden = self._decoder.feed(token[:, None])[:, 0]

    def batch(self, starts: Tensor | None = None, forced: bool = False) -> Batch:
        """All slots as a batch, rewards still empty; in `turn` and `state_key` the segments that begin at `starts`.

        starts: (S, T) bool (None: where two responses part, see `forks`). forced: fill `sampler_logp`.
        """
        if bool((self.state != CLOSED).any()):
            raise ValueError("tree: some slots are free or still open, so it is no batch yet")
        width = max(int(self.length.max()), 1)
        mask = torch.arange(width, device=self.length.device) < self.length[:, None]

        def shown(table: Tensor) -> Tensor:
            return table[:, :width].masked_fill(~mask, 0).clone()

        tokens = shown(self.tokens)
        generation = Generation(
            tokens, mask, shown(self.logp), shown(self.entropy), self.finished.clone(),
            torch.full(mask.shape, self.sampling.temperature, device=mask.device),
            prompt=self.prompt[self.owner], prompt_mask=self.prompt_mask[self.owner], group=self.owner.clone(),
        )  # fmt: skip
        where = forks(tokens, mask, self.owner) if starts is None else starts[:, :width]
        batch = segments(generation.batch(), where)
        return batch.but(sampler_logp=shown(self.sampler_logp)) if forced else batch

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(list(slots), dtype=torch.int64, device=self.state.device)

    def _past(self, at: Tensor) -> list[Tensor]:
        """The tokens before the next one of each held branch, (R,) each, newest last, padded where there are none."""
        tail = self.stopper.tail if self.stopper.suspect is not None else 0
        out = []
        for back in range(min(tail, int(at.max()) if len(at) else 0), 0, -1):
            place = at - back
            token = self.tokens[self.slot, place.clamp_min(0)]
            out.append(torch.where(place >= 0, token, self.policy.tokenizer.pad_token_id))
        return out

    def _occupy(self, new: Tensor, source: Tensor, length: Tensor) -> None:
        if bool((self.state[new] != FREE).any()) or bool((self.owner[new] != self.owner[source]).any()):
            raise ValueError("slots: expected free slots of the same prompt")
        for table in (self.tokens, self.logp, self.sampler_logp, self.entropy, *self._marks.values()):
            table[new] = table[source]
        self.length[new], self.state[new], self.finished[new] = length, OPEN, False

    @torch.inference_mode()
    def _enter(self, decoders: list[Decoder], hidden: list[Tensor], slots: list[Tensor]) -> None:
        if self._decoder is not None:
            decoders, hidden, slots = [self._decoder, *decoders], [self._hidden, *hidden], [self.slot, *slots]
        self._decoder, self._hidden, self.slot = Decoder.join(decoders), torch.cat(hidden), torch.cat(slots)
        self._logits = None

    @torch.inference_mode()
    def _hold(self, index: Tensor) -> None:
        """Keep the held branches `index` (b,), in that order."""
        if self._decoder is None or len(index) == len(self.slot):
            return
        self.slot, self._hidden = self.slot[index], self._hidden[index]
        self._logits = None if self._logits is None else self._logits[index]
        if len(index):
            self._decoder.keep(index)
        else:
            self._decoder = None

    def _settle(self, all_of_them: bool = False) -> Tensor | None:
        """Drop closed branches, if that pays or is asked for; the rows that stay, (b,), or None where all do."""
        rows = self.open
        count = int(rows.sum())
        if self._decoder is None or count == len(rows) or (count > COMPACT * len(rows) and not all_of_them):
            return None
        if self._shelf is not None:
            over = (~rows).nonzero()[:, 0]
            self._shelf.append((self.slot[over].tolist(), self._decoder.take(over)))
        kept = rows.nonzero()[:, 0]
        self._hold(kept)
        return kept


def forks(tokens: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Where segments begin if they end wherever two responses of a group part: (B, T) bool, true at step 0.

    tokens, mask: (B, T), right-padded; group: (B,).
    """
    starts = torch.zeros_like(mask)
    starts[:, :1] = mask[:, :1]
    lengths = mask.sum(1)
    for name in group.unique().tolist():
        rows = (group == name).nonzero()[:, 0]
        text = tokens[rows].masked_fill(~mask[rows], -1)
        common = (text[:, None] == text[None]).long().cumprod(2).sum(2)  # tokens shared by each pair
        first, second = (common < lengths[rows][:, None]).nonzero(as_tuple=True)
        starts[rows[first], common[first, second]] = True
    return starts


def segments(batch: Batch, starts: Tensor) -> Batch:
    """The batch with `turn`, the index of a token's segment, and `state_key`, a hash of all before that segment.

        state_key_t = hash(prompt, y_0 ... y_{s-1}),    s = the last step <= t at which a segment begins

    starts: (B, T) bool. Keys are equal for equal prompts and tokens, positive, and the same in every process.
    """
    starts = starts & batch.mask
    tokens, prompts = batch.inputs["tokens"].cpu(), batch.context["prompt"].cpu()
    prompt_mask, keys = batch.context["prompt_mask"].cpu(), torch.zeros(tokens.shape, dtype=torch.int64)
    for i, begin in enumerate(starts.cpu()):
        running = hashlib.blake2b(prompts[i][prompt_mask[i]].numpy().tobytes() + b"|", digest_size=8)
        done = 0
        for place in begin.nonzero()[:, 0].tolist():
            running.update(tokens[i, done:place].numpy().tobytes())
            done = place
            keys[i, place] = int.from_bytes(running.copy().digest(), "big") >> 1 | 1
    columns = torch.arange(tokens.shape[1], device=starts.device)
    latest = (starts * columns).cummax(1).values
    state = keys.to(starts.device).gather(1, latest) * batch.mask
    return batch.but(turn=(starts.cumsum(1) - 1).clamp_min(0) * batch.mask, state_key=state)
