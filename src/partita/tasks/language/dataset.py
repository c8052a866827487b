"""Prompts and answers from a file or the hub, judged by a verifier that is named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import torch

from partita.core.errors import UserError, nearest
from partita.core.task import Outcome, Problem
from partita.tasks.language.base import LanguageTask
from partita.tasks.language.rows import Row, check_template, load_rows, need_column, prompt_of
from partita.tasks.language.verifiers import VERIFIERS


@dataclass(frozen=True)
class Dataset(LanguageTask):
    """A JSONL file or a Hugging Face dataset with a column of prompts and a column of answers.

    path: file, or name on the hub (which needs `pip install datasets`). split, subset: of a hub dataset.
    prompt_column, answer_column: names of columns. category_column: what a curriculum chooses between, or "".
    demonstration_column: worked responses, or "". verifier: exact, numeric, regex, choice or code. template: what the
    policy reads, around {prompt}.
    """

    path: str = ""
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    verifier: str = "exact"
    template: str = "{prompt}"
    split: str = "train"
    subset: str = ""
    category_column: str = ""
    demonstration_column: str = ""

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        if self.verifier not in VERIFIERS:
            raise UserError(f"verifier: no verifier `{self.verifier}`; {nearest(self.verifier, VERIFIERS)}")
        check_template(self.template)

    def load(self) -> list[Problem]:
        """Every row as a problem, in order; raises UserError at the first row that cannot be used."""
        rows = load_rows(self.path, self.split, self.subset)
        columns = {"prompt_column": self.prompt_column, "answer_column": self.answer_column}
        for optional in ("category_column", "demonstration_column"):
            if name := getattr(self, optional):
                columns[optional] = name
        for field, column in columns.items():
            need_column(rows, column, field, self.path)
        problems = []
        for number, row in enumerate(rows, 1):
            prompt = prompt_of(row, number, self.prompt_column, self.template, self.path)
            answer = row[self.answer_column]
            wrong = "there is no answer" if answer is None else VERIFIERS[self.verifier].wrong(answer)
            if wrong:
                raise UserError(
                    f"answer_column: `{self.answer_column}` of row {number} of {self.path} does not suit the "
                    f"verifier {self.verifier}: {wrong}"
                )
            category = str(row[self.category_column]) if self.category_column else ""
            data = {"answer": answer, "row": number}
            if self.demonstration_column:
                data["demonstration"] = str(row[self.demonstration_column])
            problems.append(Problem(prompt, data, category))
        return problems

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n rows drawn with replacement."""
        loaded = _loaded(self)
        draw = torch.randint(len(loaded), (max(n, 0),), generator=generator, device=generator.device)
        return [loaded[i] for i in draw.tolist()]

    def demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None = None) -> str:
        """The worked response of the problem's row."""
        if not self.demonstration_column:
            raise UserError(
                f"demonstration_column: {self.path} is read without worked responses; name their column with "
                "--task.demonstration-column"
            )
        return problem.data["demonstration"]

    def verify(self, problem: Problem, response: str) -> Outcome:
        """What the named verifier says."""
        return VERIFIERS[self.verifier].score(response, problem.data["answer"])

    def verify_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Outcome]:
        """Verify many; programs run side by side, one for each processor."""
        if self.verifier != "code":
            return super().verify_all(problems, responses)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(self.verify, problems, responses))


_kept: dict[Dataset, tuple[Sequence[Row], list[Problem]]] = {}


def _loaded(task: Dataset) -> list[Problem]:
    """The problems of a task, kept while the rows behind them are the same."""
    rows = load_rows(task.path, task.split, task.subset)
    if task not in _kept or _kept[task][0] is not rows:
        _kept[task] = (rows, task.load())
    return _kept[task][1]
