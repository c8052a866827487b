import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.tasks.language.verifiers import VERIFIERS, choice, code, exact, last_number, numeric, regex


@pytest.mark.parametrize(
    ("response", "answer", "score"), [(" 12\n", "12", 1), ("12.0", "12", 0), ("", "12", 0), ("7", 7, 1)]
)
def test_exact(response, answer, score):
    assert exact(response, answer).score == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7", 7.0),
        ("it is -3.5.", -3.5),
        ("10-4", 4.0),
        ("1,234,567 people", 1234567.0),
        (r"\boxed{12} of 99", 12.0),
        (r"\boxed{1} then \boxed{2} of 3", 2.0),
        (r"\boxed{x} then 5", 5.0),
        ("3/4", 0.75),
        ("1/0", None),
        ("2.5e3", 2500.0),
        (".5", 0.5),
        ("none", None),
        ("#### 18", 18.0),
        ("9" * 400, None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_numeric_tolerance_is_relative_above_one_and_absolute_below():
    assert numeric("1000.9", 1000, tolerance=1e-3).score == 1.0
    assert numeric("1001.1", 1000, tolerance=1e-3).score == 0.0
    assert numeric("0.0009", 0, tolerance=1e-3).score == 1.0
    assert numeric("0.0011", 0, tolerance=1e-3).score == 0.0
    assert numeric("so 18", "2 * 9 = 18\n#### 18").score == 1.0
    assert numeric("no idea", 3).parts == {"format": 0.0}


def test_regex():
    assert regex("the year 1984.", r"\b19\d\d\b").score == 1.0
    assert regex("the year 2084.", r"\b19\d\d\b").score == 0.0


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(c)", None),
        ("(C) because of A: no", "A"),
        (r"A or B? \boxed{c}", "C"),
        ("The answer is d, not A", "D"),
        ("Answer: (B). A is wrong", "B"),
        ("BAD CAB", None),
    ],
)
def test_choice(response, letter):
    assert choice(response, letter or "B").score == float(letter is not None)
    assert choice(response, "J").score == 0.0


DOUBLE = "Here:\n```python\ndef f(x):\n    return 2 * x\n```\nDone."


@pytest.mark.parametrize(
    ("tests", "share"),
    [
        ([{"call": "f(2)", "equals": 4}, {"call": "f('a')", "equals": "aa"}], 1.0),
        ([{"call": "f(2)", "equals": 4}, {"call": "f(2)", "equals": 5}], 0.5),
        ([{"call": "f((1, 2))", "equals": [1, 2, 1, 2]}], 1.0),  # tuples are lists in JSON
        ([{"call": "f(0.1)", "equals": 0.2 + 1e-12}, {"call": "f(1)", "equals": True}], 0.5),
        ([{"call": "f(None)", "equals": None}], 0.0),
        ("assert f(2) == 4\nassert f(0) == 0", 1.0),
        ("assert f(2) == 5", 0.0),
        (["assert f(2) == 4", "assert f(1) == 2"], 1.0),
        (json.dumps([{"call": "f(3)", "equals": 6}]), 1.0),
    ],
)
def test_code_by_calls_and_assertions(tests, share):
    outcome = code(DOUBLE, tests)
    assert outcome.parts["tests"] == share
    assert outcome.score == float(share == 1.0)


def test_code_by_input_and_output():
    tests = [{"stdin": "2\n", "stdout": "4"}, {"stdin": "5\n", "stdout": "10\n\n"}]
    assert code("print(int(input()) * 2)", tests).score == 1.0
    assert code("print(int(input()) + 2)", tests).parts["tests"] == 0.5


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
        "print = lambda *a: None\ndef f(x): return 4",
        "def f(x): return open('/etc/passwd').read()",
        "",
        "def f(:",
        "\0",
    ],
)
def test_ways_out_do_not_pass(program):
    assert code(program, [{"call": "f(2)", "equals": 4}]).score == 0.0
    assert code(program, [{"stdin": "", "stdout": "4"}]).score == 0.0


def test_leaving_early_does_not_pass_assertions():
    assert code("raise SystemExit(0)", "assert False").score == 0.0
    assert code("import os\nos._exit(0)", "assert False").score == 0.0


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("exact", "", None),
        ("numeric", "#### 4", "four"),
        ("regex", "a+", "("),
        ("choice", "(b)", "K"),
        ("code", "assert f(1)", "[]"),
        ("code", [{"stdin": "", "stdout": "1"}], [{"stdin": ""}]),
        ("code", [{"call": "f()", "equals": None}], {"inputs": [1], "outputs": [2]}),
        ("code", '[{"call": "f()", "equals": 1}]', "[{"),
        ("code", ["assert f(1)"], 5),
    ],
)
def test_answers_are_checked(name, good, bad):
    assert VERIFIERS[name].wrong(good) is None
    assert VERIFIERS[name].wrong(bad)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text())
def test_verifiers_are_total(text):
    for name, answer in (("exact", "1"), ("numeric", "1"), ("regex", "a+b"), ("choice", "A")):
        for response in (text, f"\\boxed{{{text}", f"answer is {text}", f"1{text}2"):
            assert VERIFIERS[name].score(response, answer).score in (0.0, 1.0)
