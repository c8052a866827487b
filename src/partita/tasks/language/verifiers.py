"""Verifiers by name: what a response is worth, given the answer that a dataset holds."""

from __future__ import annotations

import functools
import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from partita.core.task import Outcome
from partita.tasks.sandbox import SandboxResult, run_python

LONGEST = 20_000  # characters of a response that verifiers look at, from its end
NUMBER = re.compile(
    r"(?:(?<![0-9)])[-+])?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?(?:\s*/\s*[0-9]+)?"
)
BOXED = "\\boxed{"
LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")
ANNOUNCED = re.compile(r"answer(?:\s+is)?\s*:?\s*[(\[]?([A-Ja-j])(?![A-Za-z])", re.IGNORECASE)
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Verifier:
    """A verifier: `score(response, answer)`, and `wrong(answer)`, why an answer of a dataset cannot be used."""

    score: Callable[[str, Any], Outcome]
    wrong: Callable[[Any], str | None]


def exact(response: str, answer: Any) -> Outcome:
    """1 when the response is the answer, white space at both ends aside."""
    right = response.strip() == str(answer).strip()
    return Outcome(float(right), {}, "right" if right else f"not {str(answer).strip()[:80]!r}")


def numeric(response: str, answer: Any, tolerance: float = 1e-6) -> Outcome:
    r"""1 when the number in the last \boxed{}, else the last number, is the answer.

    The difference may be `tolerance` times the size of the answer, or `tolerance` where that is less than 1.
    Thousands separators and fractions a/b are understood; an answer given as text is read in the same way.
    """
    given, wanted = last_number(response), last_number(str(answer))
    if given is None or wanted is None:
        return Outcome(0.0, {"format": 0.0}, "no number in it")
    right = abs(given - wanted) <= tolerance * max(1.0, abs(wanted))
    return Outcome(float(right), {"format": 1.0}, "right" if right else f"{given:.12g} is not {wanted:.12g}")


def regex(response: str, answer: Any) -> Outcome:
    """1 when the pattern, which is the answer column, matches somewhere in the response (`re.search`)."""
    right = _pattern(str(answer)).search(response[-LONGEST:]) is not None
    return Outcome(float(right), {}, "the pattern matches" if right else "the pattern does not match")


def choice(response: str, answer: Any) -> Outcome:
    r"""1 when the letter chosen is the answer: in the last \boxed{}, after "answer is", or the last one alone."""
    letter = last_choice(response)
    right = letter == str(answer).strip().strip("()").upper()
    return Outcome(float(right), {"format": float(letter is not None)}, f"chose {letter}")


def code(response: str, answer: Any, seconds: float = 4.0) -> Outcome:
    """Share of unit tests passed by the last fenced block of Python (else all of it); 1 when all pass.

    The answer is a list (or JSON text of a list) of tests, or Python text of assertions. A test is
    `{"stdin": ..., "stdout": ...}`, compared line by line without trailing spaces, or `{"call": "f(1, 2)",
    "equals": 3}`, compared as JSON values, numbers to 1e-9. Programs run in the sandbox, and the expected
    values of these two never enter it. Assertions run inside the program's process and count together as
    one test, so that a program written to deceive can pass them; prefer calls where programs are optimised
    against their tests.
    `Outcome.parts`: "tests", the share passed; the score is 1 when all pass, else 0.
    """
    blocks = FENCE.findall(response)
    program = blocks[-1] if blocks else response
    tests = _tests(answer)
    if isinstance(tests, str):
        passed, why = [_assertions(program, tests, seconds)], "assertions"
    else:
        calls = [test for test in tests if "call" in test]
        passed = _calls(program, calls, seconds) if calls else []
        passed += [_stream(program, test, seconds) for test in tests if "call" not in test]
        why = "tests"
    share = sum(passed) / len(passed) if passed else 0.0
    return Outcome(float(bool(passed) and all(passed)), {"tests": share}, f"{sum(passed)} of {len(passed)} {why} pass")


def last_number(text: str) -> float | None:
    r"""The number in the last \boxed{} that holds one, else the last number of the text, or None."""
    text = text[-LONGEST:]
    boxed = text.rpartition(BOXED)[2].partition("}")[0] if BOXED in text else ""
    found = NUMBER.findall(boxed) or NUMBER.findall(text)
    if not found:
        return None
    top, _, bottom = found[-1].replace(",", "").partition("/")
    value = float(top)
    if bottom.strip():
        below = float(bottom)
        value = value / below if below else math.nan
    return value if math.isfinite(value) else None


def last_choice(text: str) -> str | None:
    r"""The letter A to J that a response chooses, or None."""
    text = text[-LONGEST:]
    boxed = text.rpartition(BOXED)[2].partition("}")[0].strip("() ") if BOXED in text else ""
    if len(boxed) == 1 and boxed.upper() in "ABCDEFGHIJ":
        return boxed.upper()
    announced = ANNOUNCED.findall(text)
    if announced:
        return announced[-1].upper()
    letters = LETTER.findall(text)
    return letters[-1] if letters else None


@functools.lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _tests(answer: Any) -> str | list[Mapping[str, Any]]:
    """The tests of an answer column: JSON text becomes a list, other text is assertions."""
    if isinstance(answer, str):
        if not answer.lstrip().startswith("["):
            return answer
        answer = json.loads(answer)
    if isinstance(answer, Mapping):
        raise TypeError("it is a dictionary")
    if answer and all(isinstance(test, str) for test in answer):
        return "\n".join(answer)
    return list(answer)


def _assertions(program: str, tests: str, seconds: float) -> bool:
    mark = secrets.token_hex(16)
    result = run_python(f"{program}\n\n{tests}\n\nprint()\nprint({mark!r})\n", seconds=seconds)
    return result.status == "ok" and result.stdout.endswith(f"\n{mark}\n")


def _calls(program: str, tests: list[Mapping[str, Any]], seconds: float) -> list[bool]:
    """Run every call after the program, in one process; the values come back as JSON on marked lines."""
    mark = secrets.token_hex(16)
    lines = [program, "", "import json as _json"]
    for k, test in enumerate(tests):
        lines += [
            "try:",
            f"    _shown = _json.dumps(eval({test['call']!r}))",
            "except Exception:",
            "    _shown = ''",
            f"print('\\n{mark} {k} ' + _shown)",
        ]
    result: SandboxResult = run_python("\n".join(lines) + "\n", seconds=seconds)
    shown = dict(re.findall(rf"^{mark} ([0-9]+) (.*)$", result.stdout, re.MULTILINE))
    return [_same_json(shown.get(str(k), ""), test["equals"]) for k, test in enumerate(tests)]


def _same_json(shown: str, wanted: Any) -> bool:
    try:
        value = json.loads(shown)
    except (ValueError, RecursionError):
        return False
    return _close(value, wanted)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or ((isinstance(a, float) or isinstance(b, float)) and math.isclose(a, b, rel_tol=1e-9))
    if isinstance(a, list) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def _stream(program: str, test: Mapping[str, Any], seconds: float) -> bool:
    result = run_python(program, stdin=str(test.get("stdin", "")), seconds=seconds)
    return result.status == "ok" and _lines(result.stdout) == _lines(str(test["stdout"]))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _any(answer: Any) -> str | None:
    return None if answer is not None else "there is no answer"


def _wrong_number(answer: Any) -> str | None:
    return None if last_number(str(answer)) is not None else f"no number in {str(answer)[:60]!r}"


def _wrong_pattern(answer: Any) -> str | None:
    try:
        _pattern(str(answer))
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression: {error}"
    return None


def _wrong_choice(answer: Any) -> str | None:
    letter = str(answer).strip().strip("()").upper()
    return None if len(letter) == 1 and letter in "ABCDEFGHIJ" else f"{str(answer)[:60]!r} is not a letter A to J"


def _wrong_tests(answer: Any) -> str | None:
    try:
        tests = _tests(answer)
    except (TypeError, ValueError) as error:
        return f"not a list of tests: {error}"
    if isinstance(tests, str):
        return None if tests.strip() else "there are no tests"
    if not tests:
        return "there are no tests"
    for test in tests:
        if not isinstance(test, Mapping) or not ("stdout" in test or {"call", "equals"} <= set(test)):
            return f'{str(test)[:60]!r} is not {{"stdin", "stdout"}}, {{"call", "equals"}} or an assertion'
        if "call" in test and not isinstance(test["call"], str):
            return f"call: expected text, got {test['call']!r}"
    return None


VERIFIERS: dict[str, Verifier] = {
    "exact": Verifier(exact, _any),
    "numeric": Verifier(numeric, _wrong_number),
    "regex": Verifier(regex, _wrong_pattern),
    "choice": Verifier(choice, _wrong_choice),
    "code": Verifier(code, _wrong_tests),
}
