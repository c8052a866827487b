"""The preference laboratory: a world of preferences with known truth, over text that a tiny model writes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.task import Outcome, Problem
from partita.estimators.games import chance
from partita.tasks.language.strings import ALPHABET
from partita.tasks.preferences.base import Given, PreferenceTask
from partita.tasks.preferences.gold import (
    CLASSES,
    MAX_TOKENS,
    PROMPTS,
    SYMBOLS,
    Gold,
    Kind,
    base_writing,
    read,
    samples,
    weights,
)
from partita.tasks.preferences.proxy import WIDEST, Proxy, fit

Source = Literal["base", "random", "mixture"]
Judge = Literal["gold", "proxy"]
SCRIBBLED = ALPHABET + ALPHABET.upper() + ";#"


@dataclass(frozen=True)
class Lab(PreferenceTask):
    """Preferences with a known truth over short text: a gold reward in closed form, and every way of blurring it.

        P(y beats y') = (1 - c) s((gold(x, y) - gold(x, y')) / noise) + c s(cycle(y, y') / noise)
        cycle(y, y')  = 1 if k(y) = k(y') + 1 mod 3,  -1 if k(y') = k(y) + 1 mod 3,  else 0

    k(y) is the class of the last letter of y (three classes, drawn from `seed`), c is `intransitive`, s the logistic
    function (a step at noise 0), gold as in `Gold`. Prompts are those of the hard slice of `strings`; responses of the
    data are what the shipped model tiny-0.3m wrote to them.

    seed: of the gold reward. reward: peaked or additive. noise: temperature of preferences. flips: share of the data's
    labels turned round. intransitive: 0 Bradley-Terry on gold, 1 rock-paper-scissors. non_markovian: share of gold
    that the order of the whole response decides. coverage: least share of the model's own responses that the data are
    drawn from, those with the openings that gold likes best. size, responses: prompts of the data (at most 768), and
    distinct responses to each, all compared with all. source: base, random letters, or a mixture. margins: whether the
    data say by how much. judge: who judges new responses, gold or a proxy fitted to the data. proxy_width: features
    that it sees, 1 to 147. proxy_ridge: its regularisation. proxy_seed: which features. data_seed: of responses and
    labels.

    `verify` scores gold whoever judges; `Outcome.parts`: "gold", "proxy" (if it judges), "covered" (1 where the
    response begins as those of the data may), "class" (k). Simplified: one kind of prompt, one line of text.
    """

    seed: int = 0
    reward: Kind = "peaked"
    noise: float = 0.5
    flips: float = 0.0
    intransitive: float = 0.0
    non_markovian: float = 0.0
    coverage: float = 1.0
    size: int = 512
    responses: int = 4
    source: Source = "base"
    margins: bool = False
    judge: Judge = "gold"
    proxy_width: int = 16
    proxy_ridge: float = 1e-3
    proxy_seed: int = 0
    data_seed: int = 0

    judged: ClassVar[bool] = True
    max_tokens: ClassVar[int] = MAX_TOKENS
    stop: ClassVar[tuple[str, ...]] = ("\n",)

    def __post_init__(self) -> None:
        for name, options in (("reward", Kind), ("source", Source), ("judge", Judge)):
            if getattr(self, name) not in get_args(options):
                known = ", ".join(get_args(options))
                raise UserError(f"task.{name}: expected one of {known}, got {getattr(self, name)!r}")
        for name, least in (("noise", 0.0), ("proxy_ridge", 1e-9)):
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"task.{name}: expected {least:g} or more, got {getattr(self, name)}")
        for name in ("flips", "intransitive", "non_markovian"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"task.{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        if not 0 < self.coverage <= 1:
            raise UserError(f"task.coverage: expected a share above 0 and up to 1, got {self.coverage}")
        for name, low, high in (("size", 1, 768), ("responses", 2, 8), ("proxy_width", 1, WIDEST)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"task.{name}: expected {low} to {high}, got {getattr(self, name)}")
        for name in ("seed", "proxy_seed", "data_seed"):
            if not 0 <= getattr(self, name) < 2**62:
                raise UserError(f"task.{name}: expected a whole number from 0 to 2^62, got {getattr(self, name)}")
        self._data()

    @property
    def offers(self) -> tuple[str, ...]:
        return ("compared", "scores")

    @property
    def parts(self) -> tuple[str, ...]:
        """What `verify` says besides the score."""
        return ("gold", *(("proxy",) if self.judge == "proxy" else ()), "covered", "class")

    @property
    def gold(self) -> Gold:
        """The gold reward."""
        return Gold(self.seed, self.reward, self.non_markovian)

    @property
    def proxy(self) -> Proxy:
        """The proxy of the settings, fitted to the comparisons of the data."""
        return _proxy(self._truthful(), self.proxy_width, self.proxy_seed, self.proxy_ridge)

    @property
    def openings(self) -> tuple[int, ...]:
        """The opening symbols of the part of the response space that the data cover."""
        return _openings(self.seed, self.reward, self.coverage)

    def _data(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return _drawn(self.size, self.responses, self.source, self.data_seed, self.openings)

    def _truthful(self) -> Lab:
        """The same data, judged by gold."""
        plain = {name: getattr(Lab, name) for name in ("judge", "margins", "proxy_width", "proxy_seed", "proxy_ridge")}
        return self.but(**plain)

    def prompt(self, index: int) -> Problem:
        return Problem(self._data()[index][0], {"index": index})

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n new prompts, of which the data know nothing."""
        return [Problem(p.prompt) for p in PROMPTS.problems(n, generator)]

    def given(self, problem: Problem) -> Given:
        """Responses to a prompt of the data and all comparisons among them, each with the winner first.

        scores: what the judge thinks of the responses. margin: the judge's difference, if `margins`.
        """
        return _given(self)[problem.data["index"]]

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """What the judge thinks of responses, (N,) float64: gold, or the proxy."""
        return (self.gold if self.judge == "gold" else self.proxy)(prompts, responses)

    def verify(self, problem: Problem, response: str) -> Outcome:
        return self.verify_all([problem], [response])[0]

    def verify_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Outcome]:
        """The gold reward of each response, and what else is known of it."""
        writing = read([p.prompt for p in problems], responses)
        parts = {"gold": self.gold.of(writing)}
        if self.judge == "proxy":
            parts["proxy"] = self.proxy.of(writing)
        parts["covered"] = torch.isin(writing.opening, torch.tensor(self.openings)).double()
        parts["class"] = weights(self.seed)["class"][writing.closing].double()
        rows = torch.stack(list(parts.values()), 1).tolist()
        return [Outcome(row[0], dict(zip(parts, row, strict=True))) for row in rows]

    def prefer(self, problem: Problem, responses: Sequence[str], generator: torch.Generator) -> Tensor:
        """(n, n): the judge's probability that response i is preferred to response j; a proxy never goes round."""
        if self.judge == "gold":
            return self.truth(problem, responses)
        value = self.proxy([problem.prompt] * len(responses), responses)
        return chance(value[:, None] - value[None], self.noise)

    def truth(self, problem: Problem, responses: Sequence[str]) -> Tensor:
        """(n, n): the true probability that response i is preferred to response j, whoever judges."""
        return self._truth([problem.prompt] * len(responses), responses, 1)[0]

    def _truth(self, prompts: Sequence[str], responses: Sequence[str], groups: int) -> Tensor:
        """(groups, n, n): the same for the responses to several prompts, as many to each, group by group."""
        writing = read(prompts, responses)
        value = self.gold.of(writing).view(groups, -1)
        found = chance(value[:, :, None] - value[:, None], self.noise)
        if not self.intransitive:
            return found
        kind = weights(self.seed)["class"][writing.closing].view(groups, -1)
        turn = (kind[:, :, None] - kind[:, None]) % CLASSES
        cycle = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)[turn]
        return (1 - self.intransitive) * found + self.intransitive * chance(cycle, self.noise)


@functools.lru_cache(maxsize=64)
def _openings(seed: int, reward: Kind, coverage: float) -> tuple[int, ...]:
    """The openings that gold likes best, so many that the base model's responses have one in `coverage` of cases."""
    if coverage == 1:
        return tuple(range(SYMBOLS))
    share = torch.bincount(base_writing().opening, minlength=SYMBOLS).double()
    order = weights(seed)["o" if reward == "peaked" else "a"].argsort(descending=True)
    count = int((share[order].cumsum(0) < coverage * share.sum()).sum()) + 1
    return tuple(order[:count].tolist())


@functools.lru_cache(maxsize=16)
def _drawn(
    size: int, responses: int, source: Source, data_seed: int, openings: tuple[int, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Prompts of the data, and distinct responses to each that begin with one of `openings`."""
    wide = samples("wide")
    generator = torch.Generator().manual_seed(data_seed)
    starts = [set(_letters(i)) for i in openings]
    allowed, anything = set().union(*starts), len(openings) == SYMBOLS

    def covered(text: str) -> bool:
        return anything or next((c for c in text if c.lower() in ALPHABET), "") in allowed

    def shuffled(texts: Sequence[str]) -> list[str]:
        return [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]

    lengths = [len(text) - 1 for texts in wide.values() for text in texts]
    out: list[tuple[str, tuple[str, ...]]] = []
    for prompt in shuffled(list(wide)):
        own = shuffled([t for t in dict.fromkeys(wide[prompt]) if t.endswith("\n") and covered(t)])
        count = {"base": responses, "random": 0}.get(source)
        if count is None:
            count = int((torch.rand(responses, generator=generator) < 0.5).sum())
        if len(own) < count:
            continue
        chosen = dict.fromkeys(own[:count])
        while len(chosen) < responses:
            text = _scribble(lengths, generator)
            if covered(text):
                chosen[text] = None
        out.append((prompt, tuple(shuffled(list(chosen)))))
        if len(out) == size:
            return tuple(out)
    raise UserError(
        f"task.size: {size} prompts are asked for, and {len(out)} have {responses} distinct responses that the "
        "coverage lets in; lower --task.size or --task.responses, or raise --task.coverage"
    )


def _letters(symbol: int) -> tuple[str, ...]:
    """The characters of an opening symbol; no letter at all for that of everything else."""
    return (ALPHABET[symbol], ALPHABET[symbol].upper()) if symbol < len(ALPHABET) else ("",)


def _scribble(lengths: Sequence[int], generator: torch.Generator) -> str:
    """Random characters, as many as a response of the base model has."""
    n = max(1, lengths[int(torch.randint(len(lengths), (), generator=generator))])
    return "".join(SCRIBBLED[i] for i in torch.randint(len(SCRIBBLED), (n,), generator=generator).tolist()) + "\n"


@functools.lru_cache(maxsize=16)
def _won(lab: Lab) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each prompt of the data its comparisons, the winner first: labels drawn from the truth, some turned round."""
    data, n = lab._data(), lab.responses
    chances = lab._truth([p for p, texts in data for _ in texts], [t for _, texts in data for t in texts], len(data))
    first, second = torch.triu_indices(n, n, 1)
    generator = torch.Generator().manual_seed(lab.data_seed + 2**62)
    draw = torch.rand(2, len(data), len(first), generator=generator, dtype=torch.float64)
    wins = (draw[0] < chances[:, first, second]) ^ (draw[1] < lab.flips)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    return tuple(
        tuple((i, j) if won else (j, i) for (i, j), won in zip(pairs, row, strict=True)) for row in wins.tolist()
    )


@functools.lru_cache(maxsize=16)
def _given(lab: Lab) -> tuple[Given, ...]:
    """What the data hold for each prompt."""
    data, n = lab._data(), lab.responses
    scores = lab.rewards([p for p, texts in data for _ in texts], [t for _, texts in data for t in texts]).view(-1, n)
    out = []
    for (_, texts), pairs, row in zip(data, _won(lab._truthful()), scores.tolist(), strict=True):
        compared = tuple((i, j, 1.0, row[i] - row[j] if lab.margins else math.nan) for i, j in pairs)
        out.append(Given(texts, compared, scores=tuple(row)))
    return tuple(out)


@functools.lru_cache(maxsize=32)
def _proxy(lab: Lab, width: int, seed: int, ridge: float) -> Proxy:
    """The proxy fitted to all comparisons of the data."""
    rows = [
        (prompt, texts[i], texts[j])
        for (prompt, texts), pairs in zip(lab._data(), _won(lab), strict=True)
        for i, j in pairs
    ]
    prompts = [p for p, _, _ in rows]
    return fit(read(prompts, [b for _, b, _ in rows]), read(prompts, [w for _, _, w in rows]), width, seed, ridge)
