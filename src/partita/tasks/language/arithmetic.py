"""Multi-digit arithmetic with worked steps, lowest digit first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from partita.core.task import Outcome, Problem
from partita.tasks.language.procedural import Procedural, _Draw

SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*"}
ANSWER = re.compile(r"[^#]*#([0-9]{1,12})")


@dataclass(frozen=True)
class Arithmetic(Procedural):
    """Addition, subtraction (never below zero) and multiplication by one digit; the level counts the digits
    of both numbers (of the first, for multiplication).

    The prompt is `347+589=`. The worked response handles one digit at a time, the lowest first; each step
    shows digit, digit and carry, then the new carry and the digit of the result, and `#` precedes the answer:

        347+589=   7+9+0=16;4+8+1=13;3+5+1=09;#936
        41-17=     1-7-0=14;4-1-1=02;#24            (carry 1: ten was borrowed)
        58*7=      8*7+0=56;5*7+5=40;#406

    The score is 1 when the number after `#` is the answer. `Outcome.parts`: "answer", "steps" (the whole
    chain is right too, see `verify_steps`), "format" (there is a number after one `#`).
    """

    level: int = 0
    category: str = ""

    levels: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    hard: ClassVar[int] = 6
    categories: ClassVar[tuple[str, ...]] = tuple(SIGNS)
    flaws: ClassVar[tuple[str, ...]] = ("no_carry", "high_first", "early_stop", "off_by_one", "wrong_operator")

    _columns: ClassVar[int] = 2

    def _attempt(self, level: int, category: str, draw: _Draw) -> Problem:
        low, high = (0 if level == 1 else 10 ** (level - 1)), 10**level - 1
        a = draw.between(low, high)
        b = draw.between(2, 9) if category == "multiplication" else draw.between(low, high)
        if category == "subtraction":
            a, b = max(a, b), min(a, b)
        answer = {"+": a + b, "-": a - b, "*": a * b}[SIGNS[category]]
        data = {"a": a, "b": b, "sign": SIGNS[category], "answer": answer}
        return Problem(f"{a}{SIGNS[category]}{b}=", data, category, level)

    def verify(self, problem: Problem, response: str) -> Outcome:
        """Score 1 when the number after `#`, on the first line, is the answer."""
        match = ANSWER.fullmatch(response.partition("\n")[0])
        if match is None:
            return Outcome(0.0, {"answer": 0.0, "steps": 0.0, "format": 0.0}, "no number after one #")
        right = int(match[1]) == problem.data["answer"]
        steps = right and self.verify_steps(problem, response)
        why = "right" if right else f"{int(match[1])} is not {problem.data['answer']}"
        return Outcome(float(right), {"answer": float(right), "steps": float(steps), "format": 1.0}, why)

    def verify_steps(self, problem: Problem, response: str) -> bool:
        """Whether every step of the chain is there, in order and right, and the answer follows from it."""
        a, b, sign = problem.data["a"], problem.data["b"], problem.data["sign"]
        return response.partition("\n")[0] == _written(_steps(a, b, sign), sign)

    def check_chain(self, problem: Problem, response: str) -> bool:
        """Whether every step of the school procedure is there, in order and right, up to the `#`."""
        a, b, sign = problem.data["a"], problem.data["b"], problem.data["sign"]
        chain, mark, _ = response.partition("\n")[0].partition("#")
        return bool(mark) and chain == _written(_steps(a, b, sign), sign).partition("#")[0]

    def _work(self, problem: Problem, draw: _Draw, flaw: str | None) -> str:
        a, b, sign = problem.data["a"], problem.data["b"], problem.data["sign"]
        if flaw == "wrong_operator":
            sign = {"+": "-", "-": "+", "*": "+"}[sign]
        slip = draw.below(len(str(a))) if flaw == "off_by_one" else -1
        steps = _steps(a, b, sign, carries=flaw != "no_carry", high_first=flaw == "high_first", slip=slip)
        keep_carry = sign != "-" and flaw != "no_carry"
        if flaw == "early_stop":
            keep_carry = keep_carry and len(steps) > 1
            steps = steps[:-1] or steps
        return _written(steps, sign, keep_carry) + "\n"


Step = tuple[int, int, int, int, int]  # digit, digit, carry in, carry out, digit of the result


def _steps(a: int, b: int, sign: str, carries: bool = True, high_first: bool = False, slip: int = -1) -> list[Step]:
    """The steps of the school procedure; `slip` is the index of a step whose result is one too high."""
    left = str(a)[::-1]
    right = str(b) * len(left) if sign == "*" else str(b)[::-1].ljust(len(left), "0")
    pairs = list(zip(map(int, left), map(int, right), strict=False))
    steps: list[Step] = []
    carry = 0
    for i, (x, y) in enumerate(pairs[::-1] if high_first else pairs):
        if sign == "-":
            total = x - y - carry + (i == slip)
            out, digit = (1 if total < 0 else 0), total % 10
        else:
            out, digit = divmod((x * y if sign == "*" else x + y) + carry + (i == slip), 10)
        steps.append((x, y, carry, out, digit))
        carry = out if carries else 0
    return steps


def _written(steps: list[Step], sign: str, keep_carry: bool | None = None) -> str:
    """The chain and its answer; the last carry leads the answer unless it is a borrow or is dropped."""
    last = "-" if sign == "-" else "+"
    chain = "".join(f"{x}{sign}{y}{last}{carry}={out}{digit};" for x, y, carry, out, digit in steps)
    lead = str(steps[-1][3]) if (sign != "-" if keep_carry is None else keep_carry) else ""
    answer = lead + "".join(str(step[4]) for step in reversed(steps))
    return f"{chain}#{int(answer)}"
