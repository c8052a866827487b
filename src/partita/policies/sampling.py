"""Sampling: tokens from a decoder, with the exact log-probabilities of the distribution they were drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.ranks import gathered, largest, world
from partita.policies.decoder import Decoder
from partita.policies.stopping import Stopper

NUCLEUS = 128  # candidates tried before the whole vocabulary is sorted for top-p
COMPACT = 0.75  # rows are compacted once no more than this share of them is still open


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: a tempered softmax, cut to top-k, then top-p, then min-p, and renormalised.

    temperature: divides the logits. top_k: keep the k likeliest tokens (0: all). top_p: keep the smallest set of
    likeliest tokens with at least this mass (1: all). min_p: keep tokens with at least this share of the largest
    probability (0: all). max_tokens: tokens of a response. stop: strings that end a response; they stay in its
    text. greedy: take the likeliest token. Raises UserError on a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    greedy: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"temperature: {self.temperature} is not a positive number; for the likeliest token use greedy=True"
            )
        if self.top_k < 0:
            raise UserError(f"top_k: {self.top_k} is negative; use 0 to keep every token")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} lies outside (0, 1]; use 1 to keep every token")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p: {self.min_p} lies outside [0, 1); use 0 to keep every token")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens: {self.max_tokens} is less than 1; a response needs at least one token")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise UserError(f"stop: {self.stop!r} is not a tuple of non-empty strings; write ('\\n',)")

    @property
    def truncates(self) -> bool:
        """Whether the distribution differs from the tempered softmax."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class Generation:
    """Responses of B rows, T tokens, right-padded.

    tokens: (B, T) int64. mask: (B, T) bool, tokens that were drawn (an end-of-sequence token counts).
    logp: (B, T) behaviour log-probabilities, of the truncated and tempered distribution; under `greedy` of the
    tempered softmax. entropy: (B, T) of the tempered softmax, in nats, or None. Both are zero outside the mask.
    finished: (B,) bool, ended by end of sequence or a stop string rather than cut. temperature: (B, T), what
    divided the logits. texts: B strings without special tokens. prompt, prompt_mask: (B, P); group: (B,) int64,
    the index of the prompt; None where the caller knows them.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor | None
    finished: Tensor
    temperature: Tensor
    texts: tuple[str, ...] = ()
    prompt: Tensor | None = None
    prompt_mask: Tensor | None = None
    group: Tensor | None = None

    def batch(self) -> Batch:
        """The responses as a `Batch`, its rewards still empty.

        `terminated` or `truncated` is true at the last token of each response.
        """
        if self.prompt is None or self.prompt_mask is None:
            raise ValueError("generation: no prompt is held, so it is no batch by itself")
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = columns == (self.mask.sum(1, keepdim=True) - 1)
        return Batch(
            mask=self.mask,
            logp=self.logp,
            entropy=self.entropy,
            terminated=last & self.finished[:, None],
            truncated=last & ~self.finished[:, None],
            group=self.group,
            inputs={"tokens": self.tokens, "temperature": self.temperature},
            context={"prompt": self.prompt, "prompt_mask": self.prompt_mask},
        )


def together(own: Generation, count: int) -> Generation:
    """The responses of all ranks, `count` of them, as wide as the longest; texts and prompts are left to the caller."""
    if world() == 1:
        return own
    width = largest(own.mask.shape[1], own.mask.device)

    def joined(x: Tensor) -> Tensor:
        return gathered(pad(x, (0, width - x.shape[1])) if x.dim() == 2 else x, count)

    held = {f.name: getattr(own, f.name) for f in fields(own)}
    every: dict[str, Any] = {name: joined(x) for name, x in held.items() if isinstance(x, Tensor)}
    out = replace(own, **every)
    return replace(out, temperature=out.temperature.amax(0).expand(count, -1))  # the longest row has all of them


@dataclass(frozen=True)
class Head:
    """The last layer: logits = weight h + bias; weight (V, D), bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(b, V) logits in float32 of hidden (b, D)."""
        return linear(hidden, self.weight, self.bias).float()


def uniforms(steps: int, rows: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(steps, rows) numbers in [0, 1) in float64, the same on every device for a generator of one device."""
    return torch.rand(steps, rows, dtype=torch.float64, generator=generator, device=generator.device).to(device)


def sample(
    decoder: Decoder,
    hidden: Tensor,
    head: Head,
    stopper: Stopper,
    sampling: Sampling,
    uniform: Tensor,
    schedule: Tensor | None = None,
    entropy: bool = False,
    live: Tensor | None = None,
    limit: Tensor | None = None,
) -> tuple[Generation, Tensor, Tensor]:
    """Draw a response for every row of a decoder that has read its prompts.

    hidden: (B, D), at the last token that each row has read. uniform: (max_tokens, B) float64 from `uniforms`:
    one number for each row and position, so that neither early ends nor compaction change what a row draws.
    schedule: (max_tokens,), a temperature for each position, in place of `sampling.temperature`. limit: (B,) int64, at
    least 1, tokens after which a row is cut, if `sampling.max_tokens` does not cut it before. Without `live`, rows
    that end are dropped from the decoder as soon as that pays, and it is of no further use. With `live` (B,) bool,
    only those rows draw, and the decoder keeps every row in its place to read on. Returns the generation (without
    texts and prompts); then, with `live`, the token of each row that the decoder has not read yet, (B,) int64, -1
    where there is none; and hidden (B, D) at the last token that it has read.
    """
    with torch.inference_mode():
        out = _sample(decoder, hidden, head, stopper, sampling, uniform, schedule, entropy, live, limit)
    # Clones made out here are ordinary tensors, which a later backward pass may save.
    generation, pending, hidden = out
    kept: dict[str, Any] = {
        f.name: x.clone() for f in fields(generation) if isinstance(x := getattr(generation, f.name), Tensor)
    }
    return replace(generation, **kept), pending.clone(), hidden.clone()


def _sample(
    decoder: Decoder,
    hidden: Tensor,
    head: Head,
    stopper: Stopper,
    sampling: Sampling,
    uniform: Tensor,
    schedule: Tensor | None,
    entropy: bool,
    live: Tensor | None,
    limit: Tensor | None,
) -> tuple[Generation, Tensor, Tensor]:
    rows, steps, device = hidden.shape[0], sampling.max_tokens, hidden.device
    taus = _temperatures(sampling, schedule)
    check_every = 1 if device.type == "cpu" else 8  # looking costs a synchronisation on an accelerator

    tokens = torch.zeros(steps, rows, dtype=torch.int64, device=device)
    drawn = torch.zeros(steps, rows, dtype=torch.bool, device=device)
    logp = torch.zeros(steps, rows, device=device)
    ent = torch.zeros(steps, rows, device=device) if entropy else None
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    pending = torch.full((rows,), -1, dtype=torch.int64, device=device)

    index: Tensor | None = None  # the rows still held, after a compaction
    stays = live is not None
    active = torch.ones(rows, dtype=torch.bool, device=device) if live is None else live.clone()
    past: list[Tensor] = []
    length = 0
    for t in range(steps):
        u = uniform[t] if index is None else uniform[t][index]
        token, token_logp, token_entropy = draw(head(hidden), u, taus[t], sampling, entropy)
        ended = stopper.hits(token, past, active)
        for store, value in ((tokens, token), (drawn, active), (logp, token_logp), (ent, token_entropy)):
            if store is not None and value is not None:
                store[t] = value if index is None else store[t].index_copy(0, index, value)
        done = active & ended
        if index is None:
            finished |= done
        else:
            finished[index] |= done
        before, active = active, active & ~ended
        if limit is not None:
            active = active & ((limit if index is None else limit[index]) > t + 1)
        length = t + 1
        if stopper.suspect is not None:
            past.append(token)
        if t + 1 == steps:
            if stays:
                pending = torch.where(before, token, pending)
            break
        if (t + 1) % check_every == 0:
            count = int(active.sum())
            if count == 0:
                if stays:
                    pending = torch.where(before, token, pending)
                break
            if not stays and count <= COMPACT * active.shape[0]:
                kept = active.nonzero()[:, 0]
                decoder.keep(kept)
                index = kept if index is None else index[kept]
                token, active = token[kept], active[kept]
                past = [p[kept] for p in past[-stopper.tail :]] if stopper.tail else []
        if stays:
            fresh = decoder.feed(token[:, None], before[:, None])[:, 0]
            hidden = torch.where(before[:, None], fresh, hidden)
        else:
            hidden = decoder.feed(token[:, None])[:, 0]

    drawn, tokens, logp = drawn[:length].T, tokens[:length].T, logp[:length].T
    tau = torch.tensor(taus[:length], device=device).expand(rows, -1)
    out = Generation(
        tokens=tokens.masked_fill(~drawn, 0),
        mask=drawn,
        logp=logp.masked_fill(~drawn, 0),
        entropy=None if ent is None else ent[:length].T.masked_fill(~drawn, 0),
        finished=finished,
        temperature=tau,
    )
    return out, pending, hidden


def _temperatures(sampling: Sampling, schedule: Tensor | None) -> list[float]:
    if schedule is None:
        return [sampling.temperature] * sampling.max_tokens
    if tuple(schedule.shape) != (sampling.max_tokens,):
        raise ValueError(f"schedule: expected (max_tokens,) = ({sampling.max_tokens},), got {tuple(schedule.shape)}")
    if not bool((schedule > 0).all()):
        raise ValueError("schedule: temperatures must be positive")
    return schedule.tolist()


def draw(
    logits: Tensor, uniform: Tensor, temperature: float, sampling: Sampling, entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One token a row by inversion: the first whose cumulative probability exceeds a uniform number.

    logits: (b, V), overwritten. uniform: (b,) float64 in [0, 1). Returns tokens (b,), their log-probabilities
    under the distribution drawn from, and the entropies of the tempered softmax (or None).
    """
    z = logits.sub_(logits.amax(1, keepdim=True))
    if temperature != 1.0:
        z.div_(temperature)
    ent = None
    if entropy:
        mass = z.exp()
        total = mass.sum(1)
        ent = total.log() - torch.linalg.vecdot(mass, z) / total
    if sampling.greedy:
        token = z.argmax(1)
        chosen = z.gather(1, token[:, None])[:, 0]
        return token, chosen - z.exp_().sum(1).log(), ent
    if sampling.top_k or sampling.top_p < 1:
        mass, candidates = _truncate(z, sampling)
        place, total = _invert(mass, uniform)
        token = candidates.gather(1, place[:, None])[:, 0]
        return token, (mass.gather(1, place[:, None])[:, 0] / total).log(), ent
    mass = z.exp_()
    if sampling.min_p:
        mass.masked_fill_(mass < sampling.min_p, 0)
    token, total = _invert(mass, uniform)
    return token, (mass.gather(1, token[:, None])[:, 0] / total).log(), ent


def _truncate(z: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Unnormalised probabilities of the tokens kept, likeliest first (0 for those cut), and their ids, (b, K)."""
    vocab = z.shape[1]
    if sampling.top_k:
        values, ids = z.topk(min(sampling.top_k, vocab), dim=1)
        mass = values.exp()
        goal = mass.sum(1, dtype=torch.float64, keepdim=True) * sampling.top_p
    else:
        goal = z.exp().sum(1, dtype=torch.float64, keepdim=True) * sampling.top_p
        values, ids = z.topk(min(NUCLEUS, vocab), dim=1)
        mass = values.exp()
        if vocab > NUCLEUS and not bool((mass.sum(1, dtype=torch.float64, keepdim=True) >= goal).all()):
            values, ids = z.sort(dim=1, descending=True)
            mass = values.exp()
    if sampling.top_p < 1:
        above = mass.cumsum(1, dtype=torch.float64) - mass
        mass = mass.masked_fill(above >= goal, 0)
    if sampling.min_p:
        mass = mass.masked_fill(mass < sampling.min_p, 0)
    return mass, ids


def _invert(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Indices with probability proportional to `mass` (b, K), and the sums (b,) of `mass`.

    Large tables go in two steps, a block and an entry within it, so that only sums are swept in float64.
    """
    width = mass.shape[1]
    if width <= 512:
        return _first_above(mass.cumsum(1, dtype=torch.float64), uniform, mass.sum(1))
    size = 1 << (width.bit_length() // 2)
    if width % size:
        mass = pad(mass, (0, -width % size))
    blocks = mass.view(mass.shape[0], -1, size)
    sums = blocks.sum(2)
    heap = sums.cumsum(1, dtype=torch.float64)
    block, total = _first_above(heap, uniform, sums.sum(1))
    held = sums.gather(1, block[:, None])[:, 0].double()
    # What is left of the uniform number inside the block is uniform again.
    rest = (uniform * heap[:, -1] - (heap.gather(1, block[:, None])[:, 0] - held)) / held
    inner = blocks[torch.arange(mass.shape[0], device=mass.device), block]
    entry, _ = _first_above(inner.cumsum(1, dtype=torch.float64), rest.clamp_(0, 1 - 2**-53), total)
    return block * size + entry, total


def _first_above(heap: Tensor, uniform: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose running sum exceeds the share `uniform` of the whole; entries of no mass never win."""
    goal = (uniform * heap[:, -1]).unsqueeze(1)
    return torch.searchsorted(heap, goal, right=True)[:, 0].clamp_(max=heap.shape[1] - 1), total
