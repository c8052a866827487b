"""Chains checked step by step: right ones pass, any other does not, and no text makes the check raise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.registry import part_class
from partita.core.task import Problem

TASKS = ("arithmetic", "strings", "countdown", "programs")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def arithmetic(a, sign, b):
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return part_class("task", "arithmetic")(), Problem(f"{a}{sign}{b}=", dict(a=a, b=b, sign=sign, answer=answer))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("level", [1, 2, 3, "hard"])
def test_worked_answers_are_right_in_every_step(name, level):
    cls = part_class("task", name)
    task = cls(level=cls.hard if level == "hard" else level)
    for problem in task.problems(25, seeded(1)):
        assert task.check_chain(problem, task.demonstrate(problem, seeded(2)))


@pytest.mark.parametrize("name", TASKS)
def test_a_character_more_less_or_other_in_the_chain_makes_it_wrong(name):
    task = part_class("task", name)(level=2)
    for i, problem in enumerate(task.problems(10, seeded(3))):
        text = task.demonstrate(problem, seeded(i)).rstrip("\n")
        chain = text.partition("#")[0]
        for at in range(len(chain)):
            for changed in (text[:at] + text[at + 1 :], text[:at] + "%" + text[at:], text[:at] + "%" + text[at + 1 :]):
                if name == "countdown" and changed.partition("#")[0] in ("", chain):
                    continue
                assert not task.check_chain(problem, changed), (problem.prompt, changed)


@pytest.mark.parametrize(
    ("a", "sign", "b", "response", "right"),
    [
        (347, "+", 589, "7+9+0=16;4+8+1=13;3+5+1=09;#936", True),
        (347, "+", 589, "7+9+0=16;4+8+1=13;3+5+1=09;#7", True),  # the chain is; `verify` judges the answer
        (347, "+", 589, "7+9+0=16;4+8+0=12;3+5+1=09;#936", False),  # a carry forgotten, the answer right by guess
        (347, "+", 589, "#936", False),
        (347, "+", 589, "7+9+0=16;4+8+1=13;3+5+1=09;936", False),
        (12, "+", 34, "1+3+0=04;2+4+0=06;#46", False),  # highest digit first: right by luck
        (41, "-", 17, "1-7-0=14;4-1-1=02;#24", True),
        (58, "*", 7, "8*7+0=56;5*7+5=40;#406\nanything", True),
    ],
)
def test_arithmetic_by_hand(a, sign, b, response, right):
    task, problem = arithmetic(a, sign, b)
    assert task.check_chain(problem, response) is right


def test_strings_in_another_order_have_a_wrong_chain_though_the_answer_is_right():
    task = part_class("task", "strings")()
    problem = Problem("ru:dba=", {"word": "dba", "operations": ("reverse", "upper"), "answer": "ABD"})
    assert task.check_chain(problem, "abd;#ABD") and not task.check_chain(problem, "DBA;#ABD")
    assert task.verify(problem, "DBA;#ABD").score == 1 and not task.check_chain(problem, "#ABD")


def test_countdown_steps_may_use_each_number_once_and_must_be_true():
    task = part_class("task", "countdown")()
    problem = Problem("4,3,7=25:", {"numbers": (4, 3, 7), "target": 25, "steps": ()})
    assert task.check_chain(problem, "3*7=21;21+4=25")
    assert task.check_chain(problem, "3*7=21")  # steps are right; that 21 is not the target `verify` says
    for wrong in ("3*7=21;21+3=24", "3*7=22;22+3=25", "3*7=21;21+4=25;", "", "25"):
        assert not task.check_chain(problem, wrong)


def test_a_program_is_followed_on_the_first_example():
    task = part_class("task", "programs")()
    problem = Problem("", {"program": "lid", "inputs": ((0, 4, 6),), "outputs": ((0, 4, 2),), "shown": 1})
    assert task.check_chain(problem, "l460i571d042#lid")
    assert task.check_chain(problem, "r640#r")  # another program, followed rightly: `verify` judges it
    for wrong in ("l460i571d043#lid", "l460i571#lid", "#lid", "l460i571d042", "l460i571d042#lix", "l460#l#l"):
        assert not task.check_chain(problem, wrong)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(text=st.one_of(st.text(max_size=60), st.text("0123456789+-*/=;#abcrlidw\n", max_size=60)))
def test_no_text_makes_it_raise(name, text):
    task = part_class("task", name)(level=2)
    assert task.check_chain(task.problems(1, seeded(4))[0], text) in (True, False)
