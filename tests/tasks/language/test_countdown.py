import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.task import Problem
from partita.tasks.language.countdown import Countdown

FOUR = Problem("4,3,7=25:", {"numbers": (4, 3, 7), "target": 25, "steps": ((1, "*", 2), (3, "+", 0))}, level=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_known_solution_is_what_is_demonstrated():
    assert Countdown().demonstrate(FOUR, seeded()) == "3*7=21;21+4=25\n"


@pytest.mark.parametrize("response", ["3*7=21;21+4=25\n", "7*3=21;4+21=25", "3*7=21;4+21=25\nwhatever"])
def test_any_valid_line_is_right(response):
    assert Countdown().verify(FOUR, response).score == 1.0


def test_not_every_number_must_be_used_and_division_is_exact():
    p = Problem("", {"numbers": (8, 4, 9), "target": 2, "steps": ()})
    assert Countdown().verify(p, "8/4=2").score == 1.0
    assert Countdown().verify(p, "9/4=2").score == 0.0


@pytest.mark.parametrize(
    ("response", "steps"),
    [
        ("", 0.0),
        ("25", 0.0),
        ("3*7=22;22+3=25", 0.0),  # wrong product
        ("3*7=21;21+4=26", 0.5),  # wrong sum
        ("3*7=21;18+7=25", 0.5),  # 18 is not there
        ("3*7=21;21+3=24", 0.5),  # 3 is used already
        ("3*7=21;7-3=4;21+4=25", 1 / 3),  # 7 and 3 are used already
        ("4*7=28;28-3=25;", 2 / 3),  # an empty step
        ("3*7=21;21+4=25 ", 0.5),
        ("3*7=21", 1.0),  # valid, but not the target
        ("3-7=-4;21+4=25", 0.0),
        ("3**7=2187", 0.0),
        ("9" * 5000 + "+1=2", 0.0),
    ],
)
def test_what_is_not_a_solution(response, steps):
    outcome = Countdown().verify(FOUR, response)
    assert outcome.score == 0.0
    assert outcome.parts["steps"] == pytest.approx(steps)


def test_another_solution_than_the_known_one():
    assert Countdown().verify(FOUR, "4*7=28;28-3=25").score == 1.0


def test_flaws():
    task = Countdown()
    assert task.demonstrate(FOUR, seeded(), "early_stop") == "3*7=21\n"
    wishful = task.demonstrate(FOUR, seeded(), "wishful")
    assert wishful in ("3*7=21;21-4=25\n", "3*7=21;21*4=25\n")
    off = task.demonstrate(FOUR, seeded(), "off_by_one")
    assert off in ("3*7=22;22+4=26\n", "3*7=21;21+4=26\n")
    for seed in range(5):
        reused = task.demonstrate(FOUR, seeded(seed), "reuse")
        assert task.verify(FOUR, reused).score == 0.0


@pytest.mark.parametrize("level", [*Countdown.levels, Countdown.hard])
@pytest.mark.parametrize("category", Countdown.categories)
def test_every_cell(level, category):
    task = Countdown(level=level, category=category)
    problems = task.problems(40, seeded(level))
    assert {(p.level, p.category) for p in problems} == {(level, category)}
    for p in problems:
        worked = task.demonstrate(p, seeded())
        assert task.verify(p, worked).score == 1.0
        assert worked.count("=") == level == len(p.data["numbers"]) - 1
        assert p.data["target"] not in p.data["numbers"]
        assert len(worked) <= task.max_tokens
        assert len(p.prompt) <= 40
        if category != "additive":
            assert ("*" if category == "multiplicative" else "/") in worked
        else:
            assert not set("*/") & set(worked)


def test_the_hard_slice_combines_pairs_first():
    for p in Countdown(level=4).problems(20, seeded()):
        assert {p.data["steps"][2][0], p.data["steps"][2][2]} == {5, 6}


def test_no_result_of_the_levels_has_three_digits():
    def results(level):
        task = Countdown(level=level)
        worked = [task.demonstrate(p, seeded()) for p in task.problems(300, seeded(level))]
        return [int(step.split("=")[1]) for line in worked for step in line.strip().split(";")]

    assert all(max(results(level)) <= 99 for level in Countdown.levels)
    assert 99 < max(results(Countdown.hard)) <= 999


def test_no_flaw_is_often_right():
    task = Countdown()
    problems = task.problems(300, seeded(1))
    for flaw in task.flaws:
        share = sum(task.verify(p, task.demonstrate(p, seeded(i), flaw)).score for i, p in enumerate(problems)) / 300
        assert share < 0.3, flaw


def test_same_generator_same_problems():
    assert Countdown().problems(50, seeded(2)) == Countdown().problems(50, seeded(2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text(), st.text(alphabet="0123456789+-*/=;"))
def test_verify_is_total(text, near):
    for response in (text, near, f"3*7=21;{near}"):
        assert Countdown().verify(FOUR, response).score in (0.0, 1.0)
