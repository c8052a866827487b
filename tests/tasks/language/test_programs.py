import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.task import Problem
from partita.tasks.language.programs import FAMILIES, HIDDEN, ProgramError, Programs, execute

INPUTS = ((0, 4, 6), (6, 6, 9), (3, 7, 3, 5), (1, 2, 3), (9, 9, 0, 1), (5, 5, 5), (8, 0, 2), (7, 6, 5, 4))


def made(program: str) -> Problem:
    outputs = tuple(execute(program, xs) for xs in INPUTS)
    return Problem("", {"program": program, "inputs": INPUTS, "outputs": outputs, "shown": 3}, level=len(program))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("r", (2, 9, 2, 7)),
        ("s", (2, 2, 7, 9)),
        ("l", (2, 9, 2, 7)),
        ("i", (8, 3, 0, 3)),
        ("d", (4, 4, 8, 4)),
        ("n", (2, 7, 0, 7)),
        ("h", (7, 2)),
        ("t", (2, 9, 2)),
        ("e", (2, 2)),
        ("u", (7, 2, 9)),
        ("w", (7, 2, 9, 2, 7, 2, 9, 2)),
        ("ti", (3, 0, 3)),
        ("rtd", (8, 4, 4)),
    ],
)
def test_operations_apply_from_left_to_right(program, result):
    assert execute(program, (7, 2, 9, 2)) == result


@pytest.mark.parametrize("program", ["", "x", "r r", "R", "r" * 13, "w" * 12, "é"])
def test_programs_that_cannot_be_run(program):
    with pytest.raises(ProgramError):
        execute(program, (1, 2, 3))


def test_worked_response_follows_the_first_example():
    # 046 rotates to 460, plus one 571, doubled modulo ten 042
    worked = Programs().demonstrate(made("lid"), seeded())
    assert worked == "l460i571d042#lid\n"
    assert Programs().verify(made("lid"), worked).parts == {"tests": 1.0, "examples": 1.0, "trace": 1.0, "format": 1.0}


def test_an_equivalent_program_is_right_too():
    assert Programs().verify(made("rn"), "#nr").score == 1.0
    assert Programs().verify(made("r"), "#rrr").score == 1.0


def test_hidden_tests_count():
    # sort leaves the three shown inputs as `made` shows them only if they are sorted already
    p = Problem("", {"program": "s", "inputs": ((1, 2), (2, 1)), "outputs": ((1, 2), (1, 2)), "shown": 1})
    outcome = Programs().verify(p, "#rr")
    assert (outcome.score, outcome.parts["examples"], outcome.parts["tests"]) == (0.0, 1.0, 0.5)


def test_flaws():
    task = Programs()
    assert task.demonstrate(made("ti"), seeded(), "early_stop") == "t46#t\n"
    assert task.demonstrate(made("tr"), seeded(), "wrong_order") == "r640t40#rt\n"
    assert task.demonstrate(made("ti"), seeded(), "extra").startswith("t46i57")
    assert task.demonstrate(made("ti"), seeded(), "doubled") == "t46i57w5757#tiw\n"


@pytest.mark.parametrize("response", ["", "lid", "#", "#lid#lid", "#l i d", "#lid ", "\n#lid", "#" + "r" * 100])
def test_badly_formed(response):
    assert Programs().verify(made("lid"), response).score == 0.0


@pytest.mark.parametrize("level", [*Programs.levels, Programs.hard])
@pytest.mark.parametrize("category", Programs.categories)
def test_every_cell(level, category):
    task = Programs(level=level, category=category)
    for p in task.problems(30, seeded(level)):
        worked = task.demonstrate(p, seeded())
        program = p.data["program"]
        assert (p.level, p.category) == (level, category)
        assert len(program) == level
        assert program[0] in FAMILIES[category]
        assert len(p.data["inputs"]) == p.data["shown"] + HIDDEN
        assert task.verify(p, worked).parts["trace"] == 1.0
        assert task.verify(p, worked).score == 1.0
        for k in range(level):  # no shorter program that leaves one operation out explains the examples
            shorter = program[:k] + program[k + 1 :]
            assert task.verify(p, f"#{shorter}").parts["examples"] < 1.0
        assert len(worked) <= task.max_tokens
        assert len(p.prompt) <= 40


def test_operations_of_levels_2_and_3_are_of_different_families():
    family = {letter: name for name, letters in FAMILIES.items() for letter in letters}
    seen = set()
    for level in (2, 3):
        for p in Programs(level=level).problems(300, seeded(level)):
            names = tuple(family[letter] for letter in p.data["program"])
            assert len(set(names)) == level
            seen.add(names)
    assert len(seen) == 6 + 6  # every order of the families occurs


def test_no_three_operations_explain_the_hard_slice():
    for p in Programs(level=4).problems(15, seeded(3)):
        shown = list(zip(p.data["inputs"], p.data["outputs"], strict=True))[: p.data["shown"]]
        for n in (1, 2, 3):
            for letters in itertools.product("rslidnhteu", repeat=n):
                assert any(execute("".join(letters), xs) != ys for xs, ys in shown)


def test_no_flaw_is_often_right():
    task = Programs()
    problems = task.problems(300, seeded(1))
    for flaw in task.flaws:
        share = sum(task.verify(p, task.demonstrate(p, seeded(i), flaw)).score for i, p in enumerate(problems)) / 300
        assert share < 0.2, flaw


def test_same_generator_same_problems():
    assert Programs().problems(50, seeded(2)) == Programs().problems(50, seeded(2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text(), st.text(alphabet="rslidnhteuw#", max_size=20))
def test_verify_is_total(text, near):
    for response in (text, f"#{text}", near):
        assert Programs().verify(made("lid"), response).score in (0.0, 1.0)
