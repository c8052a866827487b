import sys

import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.language.reasoning import ReasoningGym, _open, harmless


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "answer",
    [
        "7",
        "(3 + 4) * 25",
        "x**2 + 3*x - 1",
        "3.5/2",
        "[[1, 2], [3, 4]]",
        "['a', 'b']",
        "sin(x)*exp(2*x)/2",
        "C + x**12",
    ],
)
def test_literals_and_formulas_may_be_evaluated(answer):
    assert harmless(answer, {})


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "().__class__",
        "x.real",
        "open('f')",
        "9**9**9",
        "(9**9)**9",
        "9**999",
        "9**(9)",
        "9**9.5",
        "[0]*10**9",
        "lambda: 0",
        "1" * 20 + "*x",
        "a" * 5000,
        "(x for x in [])",
        "99999!",
    ],
)
def test_nothing_else_may(answer):
    assert not harmless(answer, {})


def test_known_answers_may():
    assert harmless("_ Q _", {"answer": "_ Q _"})
    assert harmless("_ Q _", {"answer": "Q _ _", "metadata": {"valid_answers": ["_ Q _"]}})


def test_bad_settings():
    with pytest.raises(UserError, match="options: not JSON"):
        ReasoningGym(dataset="leg_counting", options="{oops")
    with pytest.raises(UserError, match="options: expected a JSON object"):
        ReasoningGym(dataset="leg_counting", options="[1]")
    with pytest.raises(UserError, match="size"):
        ReasoningGym(dataset="leg_counting", size=0)


def test_without_the_package(monkeypatch):
    _open.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="pip install reasoning-gym"):
        ReasoningGym(dataset="leg_counting").problems(1, seeded())


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def _needed(self):
        pytest.importorskip("reasoning_gym")

    def test_questions_and_the_scorer_of_the_package(self):
        task = ReasoningGym(dataset="leg_counting")
        problems = task.problems(5, seeded())
        assert [p.prompt for p in problems] == [p.prompt for p in task.problems(5, seeded())]
        for p in problems:
            right = p.data["entry"]["answer"]
            assert task.verify(p, right).score == 1.0
            assert task.verify(p, f"I think <answer> {right} </answer> so").score == 1.0
            assert task.verify(p, f"{int(right) + 1}").score < 0.5

    def test_scorers_that_evaluate_see_no_code(self, tmp_path):
        task = ReasoningGym(dataset="countdown")
        p = task.problems(1, seeded())[0]
        trap = tmp_path / "trap"
        assert task.verify(p, f"open({str(trap)!r}, 'w')").score == 0.0
        assert not trap.exists()
        assert task.verify(p, p.data["entry"]["metadata"]["expression"]).score == 1.0

    def test_names_and_options(self):
        with pytest.raises(UserError, match=r"no `leg_countin`; did you mean leg_counting"):
            ReasoningGym(dataset="leg_countin").problems(1, seeded())
        with pytest.raises(UserError, match="options: reasoning-gym refuses"):
            ReasoningGym(dataset="leg_counting", options='{"no_such": 1}').problems(1, seeded())
