"""`partita solve`: answers, files, and what is said of bad words."""

import json

import pytest

from partita.cli import main


def said(capsys, *words):
    code = 0
    try:
        main(["solve", *words])
    except SystemExit as stopped:
        code = stopped.code
    out = capsys.readouterr()
    return code, out.out + out.err


def test_it_says_values_and_actions(capsys):
    code, text = said(capsys, "policy_iteration", "--task", "river_swim", "--task.length", "3")
    lines = text.splitlines()
    assert code == 0 and lines[0].startswith("policy_iteration on river_swim: ") and lines[-1].endswith("right")
    assert sum(line.startswith("  state") for line in lines) == 3


def test_a_file_holds_everything(tmp_path, capsys):
    target = tmp_path / "found.json"
    assert said(capsys, "value_iteration", "--out", str(target), "--every", "10", "--discount", "0.9")[0] == 0
    found = json.loads(target.read_text())
    assert found["finished"] and found["curves"]["sweep"][:2] == [10, 20]
    assert len(found["tables"]["values"]) == 6 and found["numbers"]["value"] > 0
    code, text = said(capsys, "value_iteration", "--json", "--discount", "0.9")
    assert code == 0 and json.loads(text)["numbers"] == found["numbers"]


def test_a_process_from_a_file(tmp_path, capsys):
    about = {"states": ["low", "high"], "actions": ["wait", "work"], "discount": 0.5, "outcomes": [
        ["low", "work", "high", 1, 0], ["high", "wait", "high", 1, 1], ["low", "wait", "low", 1, 0.1]]}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(about))
    code, text = said(capsys, "linear_programming", "--task", str(tmp_path / "p.json"))
    assert code == 0 and "state 0 (low)         1.000000  work" in text


def test_a_gridworld_needs_no_discount_to_the_end(capsys):
    code, text = said(capsys, "backward_induction", "--task", "gridworld", "--task.layout", "corridor")
    assert code == 0 and "value  0.92" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "solve: name a recipe"),
        (("value_iter",), "solve: value_iter: no such exact recipe; did you mean value_iteration"),
        (("ppo",), "ppo: this recipe learns; use partita train ppo"),
        (("value_iteration", "--task", "cartpole"), "task cartpole: it has no process"),
        (("value_iteration", "--task", "gridworld"), "it ends after 100 decisions; use backward_induction"),
        (("value_iteration", "--task", "none.json"), "none.json: no such file"),
        (("value_iteration", "--solver.tol", "1"), "--solver.tol: no such flag; did you mean solver.tolerance"),
        (("value_iteration", "--solver.tolerance", "-1"), "solver.tolerance: expected a number above 0"),
        (("value_iteration", "--solver", "iteration"), "--solver iteration: no such part"),
        (("value_iteration", "--discount", "2"), "discount: expected a number from 0 to 1, got 2.0"),
        (("value_iteration", "--sweeps", "0"), "sweeps: expected 1 or more, got 0"),
    ],
)
def test_bad_words_are_answered_in_a_line(words, line, capsys):
    code, text = said(capsys, *words)
    assert code == 2 and line in text and text.count("\n") == 1


def test_train_sends_exact_recipes_here(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "value_iteration"])
    assert stopped.value.code == 2 and "use partita solve value_iteration" in capsys.readouterr().err


def test_train_refuses_tasks_in_which_nothing_acts(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ppo", "--task", "brownian"])
    assert stopped.value.code == 2 and "task brownian: nothing acts in it; use partita solve" in capsys.readouterr().err
