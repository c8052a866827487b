"""Tasks of the package reasoning-gym, by name."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from partita.core.errors import UserError, nearest
from partita.core.task import Outcome, Problem
from partita.tasks.language.base import LanguageTask

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
EVALUATES = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
FUNCTIONS = frozenset(["sin", "cos", "tan", "exp", "log", "sqrt", "pi"])
LONGEST = 4096
SEED = 20_240_000  # of the package's own generator; which entries are drawn comes from ours


@dataclass(frozen=True)
class ReasoningGym(LanguageTask):
    """A dataset of reasoning-gym: its questions, and its own scorer (which may give part of a point).

    dataset: its name, such as `leg_counting`. options: its settings as a JSON object, such as
    '{"min_terms": 2}'. size: how many different questions there are. The answer is what the last
    <answer>...</answer> holds, else the whole response. Some of the package's scorers evaluate the answer
    as Python or as a formula; these get to see only literals and plain formulas, all else scores 0.
    Needs `pip install reasoning-gym`.
    """

    dataset: str = ""
    options: str = "{}"
    size: int = 10_000

    max_tokens: ClassVar[int] = 512

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size: a dataset needs at least one question, got {self.size}")
        try:
            options = json.loads(self.options)
        except ValueError as error:
            raise UserError(f"options: not JSON: {error}; write for example '{{\"min_terms\": 2}}'") from None
        if not isinstance(options, dict):
            raise UserError(f"options: expected a JSON object, got {self.options}")

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n questions drawn with replacement."""
        entries = _open(self.dataset, self.options, self.size)
        drawn = torch.randint(self.size, (max(n, 0),), generator=generator, device=generator.device).tolist()
        return [Problem(entry["question"], {"index": i, "entry": entry}) for i in drawn for entry in (entries[i],)]

    def verify(self, problem: Problem, response: str) -> Outcome:
        """What the package's scorer says; 0 when it fails on the response."""
        entries = _open(self.dataset, self.options, self.size)
        tagged = TAGGED.findall(response)
        answer = (tagged[-1] if tagged else response).strip()
        if _evaluates(entries.__class__) and not harmless(answer, problem.data["entry"]):
            return Outcome(0.0, {}, "not a literal or a plain formula, which is all that this scorer may evaluate")
        try:
            score = float(entries.score_answer(answer=answer, entry=problem.data["entry"]))
        except Exception as error:
            return Outcome(0.0, {}, f"the scorer failed: {type(error).__name__}")
        return Outcome(score if 0.0 <= score <= 1.0 else 0.0, {}, f"scored {score:.3g}")


def harmless(answer: str, entry: Any) -> bool:
    """Whether a scorer may evaluate an answer: a known answer, a literal, or a short formula with small powers."""
    if len(answer) > LONGEST:
        return False
    if answer == entry.get("answer") or answer in (entry.get("metadata", {}).get("valid_answers") or ()):
        return True
    try:
        ast.literal_eval(answer)
        return True
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if len(answer) > 256 or re.fullmatch(r"[0-9A-Za-z+\-*/(). \n]*", answer) is None:
        return False
    if re.search(r"[A-Za-z)]\s*\.|\.\s*[A-Za-z]|[0-9]{13}", answer):  # attributes, huge numbers
        return False
    powers = re.findall(r"(\S?)\s*\*\*\s*([^\s*]*)\s*(\*\*)?", answer)
    for before, exponent, chained in powers:  # of a number or a letter, to at most 99, not of a power
        if before == ")" or chained or re.match(r"[0-9]{1,2}(?![0-9.])", exponent) is None:
            return False
    return all(len(name) == 1 or name in FUNCTIONS for name in re.findall(r"[A-Za-z]+", answer))


@functools.cache
def _evaluates(cls: Any) -> bool:
    """Whether a scorer evaluates answers; yes where its source cannot be read."""
    try:
        return EVALUATES.search(inspect.getsource(cls.score_answer)) is not None
    except (OSError, TypeError):
        return True


@functools.lru_cache(maxsize=8)
def _open(name: str, options: str, size: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"reasoning_gym: needs `pip install reasoning-gym` ({error})") from None
    if name not in DATASETS:
        raise UserError(f"dataset: reasoning-gym has no `{name}`; {nearest(name, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(name, **{"seed": SEED, "size": size, **json.loads(options)})
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"options: reasoning-gym refuses {options} for {name}: {error}") from None
