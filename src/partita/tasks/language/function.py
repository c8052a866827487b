"""A verifier of your own: `file.py:function`, called with the prompt, the response and the row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from partita.core.errors import UserError, nearest
from partita.core.registry import load_file
from partita.core.task import Outcome, Problem
from partita.tasks.language.base import LanguageTask
from partita.tasks.language.rows import check_template, load_rows, need_column, prompt_of


@dataclass(frozen=True)
class Function(LanguageTask):
    """Prompts from a file or the hub, judged by a Python function of yours.

    function: `file.py:name`, called as `name(prompt=, response=, **columns)` with the other columns of the row;
    it returns a number, or a dictionary with "score" whose other numbers become `Outcome.parts`. A function
    that raises, or whose score is not a finite number, stops the run with a UserError that says where.
    path, prompt_column, template, split, subset: as in `dataset`.
    """

    function: str = ""
    path: str = ""
    prompt_column: str = "prompt"
    template: str = "{prompt}"
    split: str = "train"
    subset: str = ""

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        check_template(self.template)

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n rows drawn with replacement."""
        rows = load_rows(self.path, self.split, self.subset)
        need_column(rows, self.prompt_column, "prompt_column", self.path)
        _resolve(self.function)
        drawn = torch.randint(len(rows), (max(n, 0),), generator=generator, device=generator.device).tolist()
        return [
            Problem(prompt_of(rows[i], i + 1, self.prompt_column, self.template, self.path), dict(rows[i]))
            for i in drawn
        ]

    def verify(self, problem: Problem, response: str) -> Outcome:
        """What the function returns; raises UserError when it fails or returns no finite score."""
        function = _resolve(self.function)
        row = {k: v for k, v in problem.data.items() if k not in ("prompt", "response")}
        where = f"function {self.function}, problem {problem.prompt[:60]!r}, response {response[:60]!r}"
        try:
            value = function(prompt=problem.prompt, response=response, **row)
        except Exception as error:
            raise UserError(f"{where}: raised {type(error).__name__}: {error}") from error
        parts: dict[str, float] = {}
        why = ""
        score = value
        if isinstance(value, Mapping):
            if "score" not in value:
                raise UserError(f'{where}: returned a dictionary without "score"; {nearest("score", map(str, value))}')
            score, why = value["score"], str(value.get("why", ""))
            parts = {str(k): float(v) for k, v in value.items() if k != "score" and _is_number(v)}
        if not _is_number(score):
            raise UserError(f'{where}: returned {score!r}; return a finite number or {{"score": number}}')
        return Outcome(float(score), parts, why)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes)) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _resolve(reference: str) -> Callable[..., Any]:
    """The function behind "file.py:name"."""
    path, colon, name = reference.rpartition(":")
    if not colon or not path or not name:
        raise UserError(f"function: expected file.py:name, got {reference!r}")
    module = load_file(path)
    found = getattr(module, name, None)
    if not callable(found):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(f"function: no function `{name}` in {path}; {nearest(name, public)}")
    return found
