"""Preferences from a file or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NoReturn, Self, get_args

import torch

from partita.core.errors import UserError
from partita.core.task import Outcome, Problem
from partita.tasks.language.rows import Row, check_template, load_rows
from partita.tasks.preferences.base import Given, PreferenceTask
from partita.tasks.preferences.prepared import Prepared, prepare

TooLong = Literal["drop", "cut_prompt_left", "cut_response_right", "refuse"]


@dataclass(frozen=True)
class Comparisons(PreferenceTask):
    """A JSONL file or a Hugging Face dataset of preferred and rejected, labelled or ranked responses.

    path: file, or name on the hub (which needs `pip install datasets`). split, subset: of a hub dataset. template: what
    the policy reads, around {prompt}, where prompts are texts. chat: ask texts in chat, as messages are. system: a
    system message for conversations that have none. max_prompt, max_response: in tokens, of the policy's tokenizer;
    prompt and response must fit into its context in any case. too_long: what happens to rows that do not fit: drop
    them, cut the beginning of the prompt or the end of the response, or refuse the file. held_out: share of the
    prompts, the last ones, that evaluation compares on. strict: refuse the file at the first row that cannot be used.
    """

    path: str = ""
    split: str = "train"
    subset: str = ""
    template: str = "{prompt}"
    chat: bool = False
    system: str = ""
    max_prompt: int | None = None
    max_response: int | None = None
    too_long: TooLong = "drop"
    held_out: float = 0.1
    strict: bool = False
    _ready: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.too_long not in get_args(TooLong):
            raise UserError(f"too_long: expected one of {', '.join(get_args(TooLong))}, got {self.too_long!r}")
        for name in ("max_prompt", "max_response"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: expected 1 token or more, got {value}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out: expected a share from 0 to below 1, got {self.held_out}")

    def met(self, policy: Any) -> Self:
        """With the data written out by the policy's chat template and measured in its tokens."""
        if getattr(policy, "domain", None) != "language":
            return self
        if self._ready.get("for") is policy.tokenizer:
            return self
        copy = replace(self)
        copy._ready.update({"for": policy.tokenizer, "data": _prepared(self, policy)})
        return copy

    @property
    def data(self) -> Prepared:
        """What was prepared for the policy met; without one, texts of any length."""
        if self._ready:
            return self._ready["data"]
        data = _prepared(self, None)
        if data.plain:
            raise UserError(
                f"path: {self.path} holds messages, which wait for a tokenizer; call task.met(policy) first"
            )
        return data

    def rows(self) -> tuple[Row, ...]:
        """Every row of the file or the dataset, as it is there."""
        return load_rows(self.path, self.split, self.subset)

    def notes(self) -> tuple[str, ...]:
        data, name = self.data, self.part_name()
        out = [f"{name}: {data.bad()}; partita data {self.path} says more"] if data.bad() else []
        if data.cut:
            out.append(f"{name}: {data.cut} of {data.rows} rows cut to fit ({self.too_long})")
        if data.plain:
            out.append(
                f"{name}: the model has no chat template, so messages are written as lines `role: text`; a file "
                "chat_template.jinja in its folder changes that"
            )
        return tuple(out)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Prompts to learn from; those held out are not among them."""
        return len(self.data.train)

    @property
    def offers(self) -> tuple[str, ...]:
        return self.data.offers

    def prompt(self, index: int) -> Problem:
        train = self.data.train
        if index >= len(train):
            raise UserError(
                f"path: {self.path} has {len(train)} rows to learn from, and the run asks for number {index + 1}: it "
                "has changed since the run began; bring it back or start anew"
            )
        return train[index]

    def given(self, problem: Problem) -> Given:
        return self.data.given[problem.data["index"]]

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n prompts to learn from, drawn with replacement."""
        train = self.data.train
        draw = torch.randint(len(train), (max(n, 0),), generator=generator, device=generator.device)
        return [train[i] for i in draw.tolist()]

    def held(self, n: int, generator: torch.Generator) -> list[Problem]:
        """All problems held out, in order; or n of them, drawn without replacement, where there are more."""
        held = self.data.held
        if len(held) <= n:
            return list(held)
        return [held[i] for i in sorted(torch.randperm(len(held), generator=generator)[:n].tolist())]

    def verify(self, problem: Problem, response: str) -> Outcome:
        self._no_judge()

    def prefer(self, problem: Problem, responses: Sequence[str], generator: torch.Generator) -> torch.Tensor:
        self._no_judge()

    def _no_judge(self) -> NoReturn:
        raise UserError(f"task {self.part_name()}: nobody judges new responses to {self.path}; use an offline recipe")


_kept: list[tuple[Comparisons, Sequence[Row], Any, Prepared]] = []


def _prepared(task: Comparisons, policy: Any) -> Prepared:
    """The data of a task for a tokenizer; the last few are kept while the rows behind them are the same."""
    rows = task.rows()
    tokenizer = None if policy is None else policy.tokenizer
    for known, its_rows, its_tokenizer, data in _kept:
        if known == task and its_rows is rows and its_tokenizer is tokenizer:
            return data
    found = prepare(task, rows, policy)
    _kept.append((task, rows, tokenizer, found))
    del _kept[:-4]
    return found
