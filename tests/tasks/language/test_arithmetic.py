import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.language.arithmetic import Arithmetic


def problem(a: int, sign: str, b: int) -> Problem:
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return Problem(f"{a}{sign}{b}=", {"a": a, "b": b, "sign": sign, "answer": answer})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("a", "sign", "b", "worked"),
    [
        # 7+9=16, 4+8+1=13, 3+5+1=9
        (347, "+", 589, "7+9+0=16;4+8+1=13;3+5+1=09;#936\n"),
        # 1-7 borrows ten: 4 remain; 4-1-1=2
        (41, "-", 17, "1-7-0=14;4-1-1=02;#24\n"),
        # 8*7=56, 5*7+5=40
        (58, "*", 7, "8*7+0=56;5*7+5=40;#406\n"),
        (95, "+", 17, "5+7+0=12;9+1+1=11;#112\n"),
        (100, "-", 99, "0-9-0=11;0-9-1=10;1-0-1=00;#1\n"),
    ],
)
def test_worked_steps(a, sign, b, worked):
    task = Arithmetic()
    assert task.demonstrate(problem(a, sign, b), seeded()) == worked
    outcome = task.verify(problem(a, sign, b), worked)
    assert outcome.score == 1.0
    assert outcome.parts == {"answer": 1.0, "steps": 1.0, "format": 1.0}


@pytest.mark.parametrize(
    ("flaw", "worked"),
    [
        ("no_carry", "7+9+0=16;4+8+0=12;3+5+0=08;#826\n"),
        ("high_first", "3+5+0=08;4+8+0=12;7+9+1=17;#1728\n"),
        ("early_stop", "7+9+0=16;4+8+1=13;#136\n"),
        ("wrong_operator", "7-9-0=18;4-8-1=15;3-5-1=17;#758\n"),
    ],
)
def test_flaws(flaw, worked):
    task = Arithmetic()
    assert task.demonstrate(problem(347, "+", 589), seeded(), flaw) == worked
    assert task.verify(problem(347, "+", 589), worked).score == 0.0


def test_off_by_one_slips_in_one_step():
    worked = Arithmetic().demonstrate(problem(11, "+", 11), seeded(3), "off_by_one")
    assert worked in ("1+1+0=03;1+1+0=02;#23\n", "1+1+0=02;1+1+0=03;#32\n")


def test_right_answer_with_a_wrong_chain_scores_but_has_no_steps():
    task = Arithmetic()
    outcome = task.verify(problem(12, "+", 34), "2+4+0=06;1+3+0=05;#46\n")
    assert (outcome.score, outcome.parts["steps"]) == (1.0, 0.0)
    assert not task.verify_steps(problem(12, "+", 34), "1+3+0=04;2+4+0=06;#46\n")
    assert task.verify(problem(12, "+", 34), "#46").score == 1.0


@pytest.mark.parametrize(
    "response", ["", "46", "#", "#46#46", "#4 6", "#-46", "#46 ", "x\n#46", "#٤٦", "#" + "9" * 5000]
)
def test_badly_formed_answers_score_nothing(response):
    assert Arithmetic().verify(problem(12, "+", 34), response).score == 0.0


@pytest.mark.parametrize("level", [*Arithmetic.levels, 5, Arithmetic.hard])
@pytest.mark.parametrize("category", Arithmetic.categories)
def test_every_cell(level, category):
    task = Arithmetic(level=level, category=category)
    problems = task.problems(40, seeded(level))
    assert {(p.level, p.category) for p in problems} == {(level, category)}
    for p in problems:
        worked = task.demonstrate(p, seeded())
        left, right = p.data["a"], p.data["b"]
        value = left + right if category == "addition" else left - right if category == "subtraction" else left * right
        assert value == p.data["answer"] >= 0
        assert len(str(left)) == level
        assert task.verify(p, worked).parts["steps"] == 1.0
        assert len(worked) <= task.max_tokens
        assert len(p.prompt) <= 40


def test_no_flaw_is_often_right():
    task = Arithmetic()
    problems = task.problems(400, seeded(1))
    for flaw in task.flaws:
        share = sum(task.verify(p, task.demonstrate(p, seeded(i), flaw)).score for i, p in enumerate(problems)) / 400
        assert share < 0.4, flaw


def test_same_generator_same_problems_and_mixture_leaves_out_the_hard_slice():
    task = Arithmetic()
    first, again = task.problems(300, seeded(5)), task.problems(300, seeded(5))
    assert first == again
    assert first != task.problems(300, seeded(6))
    assert {p.level for p in first} == set(task.levels)
    assert {p.category for p in first} == set(task.categories)
    assert task.problems(0, seeded()) == []


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text())
def test_verify_is_total(text):
    for response in (text, f"#{text}", f"7+9+0=16;{text}"):
        assert Arithmetic().verify(problem(7, "+", 9), response).score in (0.0, 1.0)


def test_bad_settings():
    with pytest.raises(UserError, match=r"level: 9 .*6 is the hard slice"):
        Arithmetic(level=9)
    with pytest.raises(UserError, match=r"`aditon`; did you mean addition"):
        Arithmetic(category="aditon")
    with pytest.raises(UserError, match=r"`no_cary`; did you mean no_carry"):
        Arithmetic().demonstrate(problem(1, "+", 1), seeded(), "no_cary")
