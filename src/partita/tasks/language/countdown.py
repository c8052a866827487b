"""Countdown: combine the numbers of a list, each at most once, until the target comes out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from partita.core.task import Outcome, Problem
from partita.tasks.language.procedural import Procedural, _Draw

OPERATORS = {"additive": "+-", "multiplicative": "*+-", "divisive": "/*+-"}  # the first defines the category
STEP = re.compile(r"([0-9]{1,6})([-+*/])([0-9]{1,6})=([0-9]{1,6})")
LARGEST = 99  # a result of the levels; HUGE of the hard slice
HUGE = 999
LARGE = (11, 25)  # the numbers of the hard slice, from and to

Step = tuple[int, str, int]  # index of a value, operator, index of a value; values are the numbers, then results


@dataclass(frozen=True)
class Countdown(Procedural):
    """Numbers from 1 to 9 and a target; the level is how many steps the known solution takes (numbers less one).

    The prompt is `4,3,7=25:`. A response is one line of steps; each takes two numbers that are there, puts
    their result in their place, and the last result must be the target (division must leave no remainder):

        4,3,7=25:   3*7=21;21+4=25

    Any valid line scores 1, whichever solution it is; not every number must be used. Categories name the
    operators of the known solution: additive (+ -), multiplicative (at least one *), divisive (at least
    one /); none of its results is above 99. The hard slice has five numbers from 11 to 25 and results up to 999,
    and combines two pairs before it combines their results.
    `Outcome.parts`: "reached" (the score), "steps" (share of the steps that are valid, up to the first
    that is not), "format" (all steps can be parsed).
    """

    level: int = 0
    category: str = ""

    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    categories: ClassVar[tuple[str, ...]] = tuple(OPERATORS)
    flaws: ClassVar[tuple[str, ...]] = ("wrong_operator", "off_by_one", "early_stop", "reuse", "wishful")

    _columns: ClassVar[int] = 16

    def _attempt(self, level: int, category: str, draw: _Draw) -> Problem | None:
        operators = OPERATORS[category]
        low, high = LARGE if level == self.hard else (1, 9)
        largest = HUGE if level == self.hard else LARGEST
        numbers = [draw.between(low, high) for _ in range(level + 1)]
        defining = draw.below(level)
        signs = [draw.choice(operators) for _ in range(level)]
        if category != "additive":
            signs[defining] = operators[0]
        order = draw.shuffled(level + 1)
        pairs = _shape(order, level == self.hard)
        values = list(numbers)
        steps: list[Step] = []
        for (i, j), sign in zip(pairs, signs, strict=True):
            if sign in "-/" and values[i] < values[j]:
                i, j = j, i
            result = _result(values[i], sign, values[j])
            if not result or result > largest or (sign in "*/" and 1 in (values[i], values[j])):
                return None
            steps.append((i, sign, j))
            values.append(result)
        if values[-1] in numbers:
            return None
        data = {"numbers": tuple(numbers), "target": values[-1], "steps": tuple(steps)}
        prompt = ",".join(map(str, numbers)) + f"={values[-1]}:"
        return Problem(prompt, data, category, level)

    def verify(self, problem: Problem, response: str) -> Outcome:
        """Score 1 when every step is valid and the last result is the target; the steps are parsed, never run."""
        texts = response.partition("\n")[0].split(";")
        parsed = [STEP.fullmatch(text) for text in texts]
        form = float(all(parsed))
        left = list(problem.data["numbers"])
        for done, match in enumerate(parsed):
            why = f"step {done + 1} is not a step like 3*7=21" if match is None else _take(left, match)
            if why:
                return Outcome(0.0, {"reached": 0.0, "steps": done / len(texts), "format": form}, why)
        reached = left[-1] == problem.data["target"]
        why = "right" if reached else f"{left[-1]} is not the target {problem.data['target']}"
        return Outcome(float(reached), {"reached": float(reached), "steps": 1.0, "format": form}, why)

    def check_chain(self, problem: Problem, response: str) -> bool:
        """Whether every step takes numbers that are there and states what comes out; the target is for `verify`.

        Here the chain is the answer, so that a right answer has a right chain.
        """
        left = list(problem.data["numbers"])
        parsed = (STEP.fullmatch(text) for text in response.partition("\n")[0].split(";"))
        return all(match is not None and not _take(left, match) for match in parsed)

    def _work(self, problem: Problem, draw: _Draw, flaw: str | None) -> str:
        numbers, steps = problem.data["numbers"], list(problem.data["steps"])
        at = draw.below(len(steps))
        i, sign, j = steps[at]
        if flaw in ("wrong_operator", "wishful"):
            if flaw == "wishful":
                at = len(steps) - 1
                i, sign, j = steps[at]
            steps[at] = (i, draw.choice([other for other in "+-*" if other != sign]), j)
        elif flaw == "reuse":
            others = [k for k in range(len(numbers)) if k not in (i, j)] or [i]
            steps[at] = (i, sign, draw.choice(others)) if j < len(numbers) else (draw.choice(others), sign, j)
        elif flaw == "early_stop" and len(steps) > 1:
            steps.pop()
        values, texts = list(numbers), []
        for k, (i, sign, j) in enumerate(steps):
            x, y = values[i], values[j]
            if sign in "-/" and x < y:
                x, y = y, x
            result = _result(x, sign, y)
            result = (x // max(y, 1) if result is None else result) + (flaw == "off_by_one" and k == at)
            if flaw == "wishful" and k == at:
                result = problem.data["target"]
            values.append(result)
            texts.append(f"{x}{sign}{y}={result}")
        if flaw == "early_stop" and len(problem.data["steps"]) == 1:
            texts = [texts[0].partition("=")[0]]
        return ";".join(texts) + "\n"


def _shape(order: Sequence[int], pairs_first: bool) -> list[tuple[int, int]]:
    """Which values each step combines: a chain, or two pairs, their results, then the rest."""
    n = len(order)
    if pairs_first:
        return [(order[0], order[1]), (order[2], order[3])] + [(n, n + 1)] + [(n + 2, order[4])]
    return [(order[0], order[1])] + [(n + k, order[k + 2]) for k in range(n - 2)]


def _result(x: int, sign: str, y: int) -> int | None:
    """x sign y in whole numbers, or None where division is not exact."""
    if sign == "/":
        return x // y if y and x % y == 0 else None
    return x + y if sign == "+" else x - y if sign == "-" else x * y


def _take(left: list[int], match: re.Match[str]) -> str:
    """Apply one written step to the numbers that are left; returns what is wrong with it, or ""."""
    x, sign, y, claimed = int(match[1]), match[2], int(match[3]), int(match[4])
    for number in (x, y):
        if number not in left:
            return f"{match[0]}: {number} is not there, or used already"
        left.remove(number)
    if _result(x, sign, y) != claimed:
        return f"{match[0]} is wrong"
    left.append(claimed)
    return ""
