import json

import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.language.function import Function

CODE = """
def score(prompt, response, answer, **rest):
    return float(response.strip() == answer)

def parts(prompt, response, **row):
    return {"score": 0.5, "length": len(response), "why": "half", "names": list(row)}

def bad(prompt, response, **row):
    return {"nan": float("nan"), "none": None, "text": "1.0", "inf": float("inf"), "dict": {"scroe": 1.0}}[response]

def fails(prompt, response, **row):
    raise KeyError("oops")

constant = 3
"""


@pytest.fixture
def made(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    rows = [{"prompt": f"p{k}", "answer": f"a{k}", "response": "clash"} for k in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def task(name, **settings):
        return Function(function=f"{tmp_path / 'mine.py'}:{name}", path=str(tmp_path / "rows.jsonl"), **settings)

    return task


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_number_and_a_dictionary(made):
    task = made("score", template="<{prompt}>")
    problems = task.problems(20, seeded())
    assert problems == task.problems(20, seeded())
    assert {p.prompt for p in problems} == {"<p0>", "<p1>", "<p2>"}
    p = problems[0]
    assert task.verify(p, p.data["answer"] + "\n").score == 1.0
    assert task.verify(p, "other").score == 0.0
    outcome = made("parts").verify(p, "four")
    assert (outcome.score, outcome.parts, outcome.why) == (0.5, {"length": 4.0}, "half")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("nan", r"returned nan; return a finite number"),
        ("none", r"returned None"),
        ("text", r"returned '1.0'"),
        ("inf", r"returned inf"),
        ("dict", r'without "score"; did you mean scroe'),
        ("unknown", r"raised KeyError"),
    ],
)
def test_bad_scores_name_the_function_the_problem_and_the_value(made, response, message):
    task = made("bad")
    p = task.problems(1, seeded())[0]
    with pytest.raises(UserError, match=message) as error:
        task.verify(p, response)
    assert "mine.py:bad" in str(error.value)
    assert repr(p.prompt) in str(error.value)


def test_a_function_that_raises(made):
    with pytest.raises(UserError, match=r"mine.py:fails, problem 'p.'.* raised KeyError: 'oops'"):
        made("fails").verify(made("fails").problems(1, seeded())[0], "x")


def test_references_that_lead_nowhere(made, tmp_path):
    with pytest.raises(UserError, match=r"no function `scor` in .*; did you mean score"):
        made("scor").problems(1, seeded())
    with pytest.raises(UserError, match="no function `constant`"):
        made("constant").problems(1, seeded())
    with pytest.raises(UserError, match=r"expected file.py:name, got 'nothing'"):
        Function(function="nothing", path=str(tmp_path / "rows.jsonl")).problems(1, seeded())
    with pytest.raises(UserError, match="no such file"):
        Function(function="gone.py:f", path=str(tmp_path / "rows.jsonl")).problems(1, seeded())
