import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.task import Problem
from partita.tasks.language.strings import OPERATIONS, Strings

RS = Problem("rs:dbac=", {"word": "dbac", "operations": ("reverse", "sort"), "answer": "abcd"}, "reverse", 3)
UD = Problem("du:caab=", {"word": "caab", "operations": ("dedupe", "upper"), "answer": "CAB"}, "dedupe", 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "result"),
    [("reverse", "aacb"), ("left", "caab"), ("upper", "BCAA"), ("sort", "aabc"), ("dedupe", "bca")],
)
def test_operations(name, result):
    assert OPERATIONS[name]("bcaa") == result


def test_worked_responses():
    assert Strings().demonstrate(RS, seeded()) == "cabd;#abcd\n"
    assert Strings().demonstrate(UD, seeded()) == "cab;#CAB\n"
    assert Strings().verify(RS, "cabd;#abcd\n").parts == {"answer": 1.0, "steps": 1.0, "letters": 1.0, "format": 1.0}


def test_flaws():
    task = Strings()
    p = Problem("ls:cab=", {"word": "cab", "operations": ("left", "reverse"), "answer": "cba"}, "left", 3)
    assert task.demonstrate(p, seeded(), "wrong_order") == "bac;#acb\n"
    assert task.demonstrate(p, seeded(), "early_stop") == "#abc\n"
    single = Problem("l:cab=", {"word": "cab", "operations": ("left",), "answer": "abc"}, "left", 1)
    assert task.demonstrate(single, seeded(), "early_stop") == "#ab\n"
    slips = {task.demonstrate(single, seeded(s), "off_by_one") for s in range(20)}
    assert slips == {"#bbc\n", "#acc\n", "#abd\n"}


@pytest.mark.parametrize(
    ("response", "score", "letters"),
    [
        ("#abcd", 1.0, 1.0),  # without the steps
        ("#abdc", 0.0, 0.5),
        ("#ab", 0.0, 0.5),
        ("#abcdabcd", 0.0, 0.5),
        ("abcd", 0.0, 0.0),
        ("#abcd#abcd", 0.0, 0.0),
        ("#ABCD", 0.0, 0.0),
        ("\n#abcd", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_scores(response, score, letters):
    outcome = Strings().verify(RS, response)
    assert (outcome.score, outcome.parts["letters"]) == (score, letters)
    assert outcome.parts["steps"] == 0.0


@pytest.mark.parametrize("level", [*Strings.levels, Strings.hard])
@pytest.mark.parametrize("category", Strings.categories)
def test_every_cell(level, category):
    task = Strings(level=level, category=category)
    for p in task.problems(30, seeded(level)):
        worked = task.demonstrate(p, seeded())
        assert (p.level, p.category) == (level, category)
        assert p.prompt[0] == category[0]
        assert len(set(p.data["operations"])) == {1: 1, 2: 1, 3: 2, 4: 2, 5: 4}[level]
        assert task.verify(p, worked).parts["steps"] == 1.0
        assert worked != f"#{p.data['word']}\n"
        assert len(worked) <= task.max_tokens
        assert len(p.prompt) <= 40


def test_no_operation_of_the_hard_slice_can_be_left_out():
    for p in Strings(level=Strings.hard).problems(100, seeded(2)):
        names = p.data["operations"]
        assert 7 <= len(p.data["word"]) <= 9
        for left_out in names:
            word = p.data["word"]
            for name in names:
                word = word if name == left_out else OPERATIONS[name](word)
            assert word != p.data["answer"]


def test_no_flaw_is_often_right():
    task = Strings()
    problems = task.problems(300, seeded(1))
    for flaw in task.flaws:
        share = sum(task.verify(p, task.demonstrate(p, seeded(i), flaw)).score for i, p in enumerate(problems)) / 300
        assert share < 0.2, flaw


def test_same_generator_same_problems():
    assert Strings().problems(50, seeded(2)) == Strings().problems(50, seeded(2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text())
def test_verify_is_total(text):
    for response in (text, f"#{text}"):
        assert Strings().verify(RS, response).score in (0.0, 1.0)
