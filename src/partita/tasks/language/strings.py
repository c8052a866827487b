"""String transformation: apply one to four named operations to a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from partita.core.task import Outcome, Problem
from partita.tasks.language.procedural import Procedural, _Draw

ALPHABET = "abcdefghij"
SHAPES = {1: (1, 3, 4), 2: (1, 5, 7), 3: (2, 3, 4), 4: (2, 5, 6), 5: (4, 7, 9)}  # operations, letters from, to
OPERATIONS: dict[str, Callable[[str], str]] = {  # the code of an operation in a prompt is its first letter
    "reverse": lambda word: word[::-1],
    "left": lambda word: word[1:] + word[:1],
    "upper": str.upper,
    "sort": lambda word: "".join(sorted(word)),
    "dedupe": lambda word: "".join(dict.fromkeys(word)),
}
LONGEST = 256  # characters of an answer that are looked at


@dataclass(frozen=True)
class Strings(Procedural):
    """Words over the letters a to j and five operations: reverse, rotate left by one, upper case, sort the
    letters, and keep the first of repeated letters.

    The prompt names the operations by their first letters, applied from left to right, and the word. The
    worked response shows the word after each operation; `#` precedes the last:

        rs:dbac=   cabd;#abcd

    Levels 1 and 2 have one operation, 3 and 4 two, the hard slice four on longer words; each changes the word
    that it is applied to, and none of the hard slice could be left out. A problem's category is its first
    operation. The score is 1 when the text after `#` is the answer. `Outcome.parts`: "answer", "steps" (the words
    shown on the way are right too), "letters" (share of positions of the answer that hold the right letter),
    "format" (there is one `#`).
    """

    level: int = 0
    category: str = ""

    levels: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    hard: ClassVar[int] = 5
    categories: ClassVar[tuple[str, ...]] = tuple(OPERATIONS)
    flaws: ClassVar[tuple[str, ...]] = ("wrong_order", "early_stop", "off_by_one", "wrong_operator")
    _columns: ClassVar[int] = 16

    def _attempt(self, level: int, category: str, draw: _Draw) -> Problem | None:
        count, low, high = SHAPES[level]
        word = "".join(draw.choice(ALPHABET) for _ in range(draw.between(low, high)))
        others = [name for name in OPERATIONS if name != category]
        names = [category] + [others[k] for k in draw.shuffled(len(others))[: count - 1]]
        words = [word, *_trace(word, names)]
        if any(before == after for before, after in zip(words, words[1:], strict=False)):
            return None
        if level == self.hard and any(_trace(word, names[:k] + names[k + 1 :])[-1] == words[-1] for k in range(count)):
            return None
        codes = "".join(name[0] for name in names)
        return Problem(
            f"{codes}:{word}=", {"word": word, "operations": tuple(names), "answer": words[-1]}, category, level
        )

    def verify(self, problem: Problem, response: str) -> Outcome:
        """Score 1 when the text after the only `#`, on the first line, is the answer."""
        line = response.partition("\n")[0]
        if line.count("#") != 1:
            return Outcome(0.0, {"answer": 0.0, "steps": 0.0, "letters": 0.0, "format": 0.0}, "no single # in it")
        given = line.partition("#")[2][:LONGEST]
        answer = problem.data["answer"]
        right = given == answer
        same = sum(x == y for x, y in zip(given, answer, strict=False)) / max(len(given), len(answer), 1)
        steps = line == _written(_trace(problem.data["word"], problem.data["operations"]))
        parts = {"answer": float(right), "steps": float(steps), "letters": same, "format": 1.0}
        return Outcome(float(right), parts, "right" if right else f"{given!r} is not {answer!r}")

    def check_chain(self, problem: Problem, response: str) -> bool:
        """Whether the word after each operation but the last is there, in order and right, up to the `#`."""
        chain, mark, _ = response.partition("\n")[0].partition("#")
        words = _trace(problem.data["word"], problem.data["operations"])
        return bool(mark) and chain == _written(words).partition("#")[0]

    def _work(self, problem: Problem, draw: _Draw, flaw: str | None) -> str:
        word, names = problem.data["word"], list(problem.data["operations"])
        at = draw.below(len(names))
        if flaw == "wrong_order" and len(names) > 1:
            names = names[::-1]
            if _trace(word, names)[-1] == problem.data["answer"]:  # the order did not matter
                names[at] = draw.choice([name for name in OPERATIONS if name != names[at]])
        elif flaw == "early_stop" and len(names) > 1:
            names.pop()
        elif flaw in ("wrong_operator", "wrong_order"):
            names[at] = draw.choice([name for name in OPERATIONS if name != names[at]])
        words = _trace(word, names)
        if flaw == "early_stop" and len(problem.data["operations"]) == 1:
            words = [words[-1][:-1]]
        if flaw == "off_by_one":  # one letter of the result is the next one of the alphabet, or its case is lost
            last = words[-1]
            k = draw.below(len(last))
            words[-1] = last[:k] + (last[k].lower() if last[k].isupper() else _next(last[k])) + last[k + 1 :]
        return _written(words) + "\n"


def _next(letter: str) -> str:
    return ALPHABET[(ALPHABET.index(letter) + 1) % len(ALPHABET)]


def _trace(word: str, names: Sequence[str]) -> list[str]:
    """The word after each operation."""
    words = []
    for name in names:
        word = OPERATIONS[name](word)
        words.append(word)
    return words


def _written(words: Sequence[str]) -> str:
    return "".join(f"{word};" for word in words[:-1]) + "#" + words[-1]
