"""Program synthesis: find the pipeline of list operations that explains two or three examples."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from partita.core.task import Outcome, Problem
from partita.tasks.language.procedural import Procedural, _Draw

Digits = tuple[int, ...]

OPERATIONS: dict[str, Callable[[Digits], Digits]] = {
    "r": lambda xs: xs[::-1],  # reverse
    "s": lambda xs: tuple(sorted(xs)),  # sort
    "l": lambda xs: xs[1:] + xs[:1],  # rotate left by one
    "i": lambda xs: tuple((x + 1) % 10 for x in xs),  # add one, modulo ten
    "d": lambda xs: tuple(x * 2 % 10 for x in xs),  # double, modulo ten
    "n": lambda xs: tuple(9 - x for x in xs),  # nine minus each
    "h": lambda xs: xs[:2],  # head: the first two
    "t": lambda xs: xs[1:],  # tail: all but the first
    "e": lambda xs: tuple(x for x in xs if x % 2 == 0),  # keep the even ones
    "u": lambda xs: tuple(dict.fromkeys(xs)),  # keep the first of equals
    "w": lambda xs: xs + xs,  # twice over
}
FAMILIES = {"order": "rsl", "value": "idn", "select": "hteu"}
LETTERS = "".join(FAMILIES.values())
MOST_STEPS = 12  # operations that a program may have
MOST_DIGITS = 256  # digits that a list may grow to
HIDDEN = 5  # unit tests that the prompt does not show


class ProgramError(ValueError):
    """A program that cannot be run: an unknown operation, too many steps, or a list that grew too long."""


def execute(program: str, digits: Digits) -> Digits:
    """Run a program, a string of operation letters applied from left to right, on a list of digits.

    Raises ProgramError when the program is empty, longer than 12 operations, has an unknown letter, or its
    list grows beyond 256 digits.
    """
    if not 0 < len(program) <= MOST_STEPS:
        raise ProgramError(f"a program has 1 to {MOST_STEPS} operations, not {len(program)}")
    for letter in program:
        if letter not in OPERATIONS:
            raise ProgramError(f"no operation {letter!r}")
        digits = OPERATIONS[letter](digits)
        if len(digits) > MOST_DIGITS:
            raise ProgramError(f"a list grew beyond {MOST_DIGITS} digits")
    return digits


@dataclass(frozen=True)
class Programs(Procedural):
    """Pipelines of one-letter operations on lists of three or four digits; the level is the program's length.

    The prompt shows `examples` pairs of input and output (level 1 two, else three). The worked response
    follows the first example through the program, and `#` precedes the program:

        046>042 669>404 3735>6828|   l460i571d042#lid

    The program is judged by the examples and by five unit tests that the prompt does not show, and scores 1
    when all pass. Categories name the family of its first operation: order (r reverse, s sort, l rotate left),
    value (i add one, d double, n nine minus; modulo ten), select (h first two, t all but the first, e evens,
    u drop repeats); `w` (twice over) occurs in responses only. The operations of levels 2 and 3 are of different
    families. The hard slice has four operations of any family, and no three explain its examples.
    `Outcome.parts`: "tests" (share passed), "examples" (share of the shown ones), "trace" (the path shown is
    what the program does to the first example), "format" (there is a program that can be run after one `#`).
    """

    level: int = 0
    category: str = ""

    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    categories: ClassVar[tuple[str, ...]] = tuple(FAMILIES)
    flaws: ClassVar[tuple[str, ...]] = ("wrong_order", "early_stop", "wrong_operator", "extra", "doubled")
    _columns: ClassVar[int] = 56

    def _attempt(self, level: int, category: str, draw: _Draw) -> Problem | None:
        first = draw.choice(FAMILIES[category])
        if level == self.hard:
            others = [letter for letter in LETTERS if letter != first]
            program = first + "".join(others[k] for k in draw.shuffled(len(others))[: level - 1])
        else:
            families = [family for name, family in FAMILIES.items() if name != category]
            program = first + "".join(draw.choice(families[k]) for k in draw.shuffled(2)[: level - 1])
        shown = 2 if level == 1 else 3
        inputs = [tuple(draw.below(10) for _ in range(3 + draw.below(2))) for _ in range(shown + HIDDEN)]
        outputs = [execute(program, xs) for xs in inputs]
        shorter = [program[:k] + program[k + 1 :] for k in range(level)]
        seen = list(zip(inputs[:shown], outputs[:shown], strict=True))
        if any(not ys for _, ys in seen) or any(_explains(other, seen) for other in shorter):
            return None
        if level == self.hard and any(_explains(other, seen) for other in _programs(level - 1)):
            return None
        prompt = " ".join(f"{_text(xs)}>{_text(ys)}" for xs, ys in seen) + "|"
        data = {"program": program, "inputs": tuple(inputs), "outputs": tuple(outputs), "shown": shown}
        return Problem(prompt, data, category, level)

    def verify(self, problem: Problem, response: str) -> Outcome:
        """Score 1 when the program after the only `#`, on the first line, passes the shown and the hidden tests."""
        trace, mark, program = response.partition("\n")[0].partition("#")
        inputs, outputs, shown = problem.data["inputs"], problem.data["outputs"], problem.data["shown"]
        try:
            if not mark:
                raise ProgramError("no program after #")
            passed = [execute(program, xs) == ys for xs, ys in zip(inputs, outputs, strict=True)]
        except ProgramError as error:
            return Outcome(0.0, {"tests": 0.0, "examples": 0.0, "trace": 0.0, "format": 0.0}, str(error))
        parts = {
            "tests": sum(passed) / len(passed),
            "examples": sum(passed[:shown]) / shown,
            "trace": float(trace == _path(program, inputs[0])),
            "format": 1.0,
        }
        return Outcome(float(all(passed)), parts, f"{sum(passed)} of {len(passed)} tests pass")

    def check_chain(self, problem: Problem, response: str) -> bool:
        """Whether the path before the `#` is what the program behind it does to the first example, step by step."""
        trace, mark, program = response.partition("\n")[0].partition("#")
        try:
            execute(program, problem.data["inputs"][0])
        except ProgramError:
            return False
        return bool(mark) and trace == _path(program, problem.data["inputs"][0])

    def _work(self, problem: Problem, draw: _Draw, flaw: str | None) -> str:
        program: str = problem.data["program"]
        at = draw.below(len(program))
        other = draw.choice([letter for letter in "rslidnhteu" if letter != program[at]])
        if flaw == "wrong_order" and len(program) > 1:
            program = program[::-1]
            if _explains(program, list(zip(problem.data["inputs"], problem.data["outputs"], strict=True))):
                program = program[:at] + other + program[at + 1 :]  # the order did not matter
        elif flaw == "early_stop" and len(program) > 1:
            program = program[:-1]
        elif flaw == "extra":
            program += draw.choice([letter for letter in "rslidnhteu" if letter != program[-1]])
        elif flaw == "doubled":
            program += "w"
        elif flaw is not None:  # one operation is another; also what the other flaws mean for a single one
            program = program[:at] + other + program[at + 1 :]
        return f"{_path(program, problem.data['inputs'][0])}#{program}\n"


@functools.cache
def _programs(longest: int) -> list[str]:
    """Every program of at most so many operations that a problem can have."""
    return ["".join(letters) for n in range(1, longest + 1) for letters in itertools.product(LETTERS, repeat=n)]


def _text(digits: Digits) -> str:
    return "".join(map(str, digits))


def _explains(program: str, pairs: Sequence[tuple[Digits, Digits]]) -> bool:
    """Whether the program, which may be empty, maps every input to its output."""
    return all((execute(program, xs) if program else xs) == ys for xs, ys in pairs)


def _path(program: str, digits: Digits) -> str:
    """Each operation and the list after it, as worked responses show them."""
    return "".join(f"{letter}{_text(execute(program[: k + 1], digits))}" for k, letter in enumerate(program))
