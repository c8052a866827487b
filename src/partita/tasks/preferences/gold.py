"""The gold reward of the preference laboratory, and the text that a base model writes, on which it is standardised."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from partita.tasks.language.strings import ALPHABET, Strings

ASSET = Path(__file__).resolve().parents[2] / "assets" / "preferences" / "lab.json"
PROMPTS = Strings(level=Strings.hard)  # four operations: shipped models have not learnt them, and write what they like
MAX_TOKENS = 32
LONGEST = 64  # characters of a response that are looked at
OTHER = len(ALPHABET)  # the symbol of everything but the letters a to j
SYMBOLS = OTHER + 1
CLASSES = 3  # of responses, among which preferences can go round
ORDERED_VOWELS = tuple(ALPHABET.index(letter) for letter in "aei")

Kind = Literal["peaked", "additive"]


@functools.cache
def samples(name: Literal["wide", "deep"]) -> dict[str, list[str]]:
    """Responses of the base model by prompt: few to many prompts (`wide`), or many to a few (`deep`)."""
    return _asset()[name]


@functools.cache
def _asset() -> dict[str, Any]:
    return json.loads(ASSET.read_text())


@dataclass(frozen=True)
class Writing:
    """Responses as numbers: N of them, T characters of the longest first line, S = `SYMBOLS`.

    symbol: (N, T) int64, 0 to 9 for the letters a to j in either case, `OTHER` for any other character, -1 beyond the
    end. length: (N,). count: (N, S), how often each symbol is there. pair: (N, S, S), how often it is followed by each.
    upper: (N,), capital letters. repeats: (N,), letters a to j that follow themselves. overlap: (N,), share of the
    prompt's letters that the response has. opening, closing: (N,) int64, the first and the last symbol that is a letter
    a to j, `OTHER` where there is none. order: (N,), the sign of last vowel minus first vowel. All float64 unless said.
    """

    symbol: Tensor
    length: Tensor
    count: Tensor
    pair: Tensor
    upper: Tensor
    repeats: Tensor
    overlap: Tensor
    opening: Tensor
    closing: Tensor
    order: Tensor


def read(prompts: Sequence[str], responses: Sequence[str]) -> Writing:
    """What the reward looks at; never raises on any string. prompts, responses: N each."""
    lines = [text.partition("\n")[0][:LONGEST].encode("ascii", "replace") for text in responses]
    raw = torch.full((len(lines), max(map(len, lines), default=0) + 1), 255, dtype=torch.uint8)
    for i, line in enumerate(lines):
        if line:
            raw[i, : len(line)] = torch.frombuffer(bytearray(line), dtype=torch.uint8)
    there = raw != 255
    symbol = _table()[raw.long()]
    spread = torch.nn.functional.one_hot(symbol.clamp(min=0), SYMBOLS).double() * there[..., None]
    count = spread.sum(1)
    pair = torch.einsum("nta,ntb->nab", spread[:, :-1], spread[:, 1:])
    wanted = torch.zeros(len(prompts), SYMBOLS, dtype=torch.float64)
    for i, prompt in enumerate(prompts):
        word = prompt.rpartition(":")[2].lower()
        wanted[i, [ALPHABET.index(c) for c in set(word) if c in ALPHABET]] = 1
    letter = there & (symbol < OTHER)
    vowel = letter & torch.isin(symbol, torch.tensor(ORDERED_VOWELS))
    return Writing(
        symbol=symbol,
        length=there.sum(1).double(),
        count=count,
        pair=pair,
        upper=((raw >= ord("A")) & (raw <= ord("Z"))).sum(1).double(),
        repeats=pair.diagonal(dim1=1, dim2=2)[:, :OTHER].sum(1),
        overlap=(wanted * (count > 0)).sum(1) / wanted.sum(1).clamp(min=1),
        opening=_end(symbol, letter, first=True, default=OTHER),
        closing=_end(symbol, letter, first=False, default=OTHER),
        order=(_end(symbol, vowel, False, 0) - _end(symbol, vowel, True, 0)).sign().double(),
    )


@functools.cache
def _table() -> Tensor:
    """The symbol of each byte."""
    table = torch.full((256,), OTHER, dtype=torch.int64)
    table[255] = -1
    for i, letter in enumerate(ALPHABET):
        table[ord(letter)] = table[ord(letter.upper())] = i
    return table


def _end(symbol: Tensor, where: Tensor, first: bool, default: int) -> Tensor:
    """The first or the last symbol of each row where `where`; `default` where there is none. (N,)."""
    place = torch.arange(where.shape[1])
    at = torch.where(where, place, len(place)).amin(1) if first else torch.where(where, place, -1).amax(1)
    found = symbol.gather(1, at.clamp(0, len(place) - 1)[:, None])[:, 0]
    return torch.where(where.any(1), found, default)


@dataclass(frozen=True)
class Gold:
    """A reward in closed form, of mean 0 and deviation 1 over what the base model writes.

    For a prompt x and the first line y of a response, n_s the count of symbol s and |y| the characters:

        peaked    S = sum_s a_s log(1 + n_s) + |y|^(-1/2) sum_t B[y_t, y_t+1] - ((|y| - L) / 6)^2
                      - repeats(y) / 2 + u upper(y) / |y| + o[opening(y)] + q overlap(x, y)
        additive  S = sum_t a[y_t]
        order     V = sign(last vowel of y - first vowel of y),  a < e < i
        gold      = z((1 - m) z(S) + m z(V)),    z: to mean 0 and deviation 1 over `wide` base samples

    a, B, o standard normal, L uniform in [10, 16], u = +-2 and q uniform in [1, 2], all drawn from `seed`. A line is
    cut at 64 characters. `peaked` saturates in counts and has a best length, so that whoever takes it for linear goes
    too far; `additive` is a sum of rewards of characters. m is `order`; V depends on the whole order of the response:
    two responses with the same characters in the same neighbourhoods can differ in it.
    """

    seed: int = 0
    kind: Kind = "peaked"
    order: float = 0.0

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """The reward of each response, (N,) float64."""
        return self.of(read(prompts, responses))

    def of(self, writing: Writing) -> Tensor:
        """The reward of responses that have been read, (N,) float64."""
        (shift, scale), (order_shift, order_scale), whole = _moments(self)
        value = (1 - self.order) * (self.plain(writing) - shift) / scale
        if self.order:
            value = value + self.order * (writing.order - order_shift) / order_scale
        return value / whole

    def plain(self, writing: Writing) -> Tensor:
        """S, before it is standardised, (N,) float64."""
        w = weights(self.seed)
        if self.kind == "additive":
            return writing.count @ w["a"]
        length = writing.length.clamp(min=1)
        return (
            writing.count.log1p() @ w["a"]
            + torch.einsum("nab,ab->n", writing.pair, w["B"]) / length.sqrt()
            - ((writing.length - w["L"]) / 6).square()
            - writing.repeats / 2
            + w["u"] * writing.upper / length
            + w["o"][writing.opening]
            + w["q"] * writing.overlap
        )


@functools.cache
def weights(seed: int) -> dict[str, Tensor]:
    """The numbers of the equation by name, and `class`: (S,), which of three classes each closing symbol belongs to."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    a, b, o = normal(SYMBOLS), normal(SYMBOLS, SYMBOLS), normal(SYMBOLS)
    length, sign, overlap = torch.rand(3, generator=generator, dtype=torch.float64)
    classes = torch.randperm(SYMBOLS, generator=generator) % CLASSES
    side = torch.where(sign < 0.5, -2.0, 2.0).double()
    return {"a": a, "B": b, "o": o, "L": 10 + 6 * length, "u": side, "q": 1 + overlap, "class": classes}


@functools.lru_cache(maxsize=64)
def _moments(gold: Gold) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Mean and deviation of S, of V, and the deviation of their mixture, over the base model's samples."""
    writing = base_writing()
    plain, order = gold.plain(writing), writing.order
    first, second = ((float(x.mean()), float(x.std())) for x in (plain, order))
    mixed = (1 - gold.order) * (plain - first[0]) / first[1] + gold.order * (order - second[0]) / second[1]
    return first, second, float(mixed.std())


@functools.cache
def base_writing() -> Writing:
    """The `wide` samples of the base model as numbers."""
    pairs = [(prompt, text) for prompt, texts in samples("wide").items() for text in texts]
    return read([p for p, _ in pairs], [t for _, t in pairs])
