"""`partita evaluate --best-of`: what it prints is the exact mean over sets, and what cannot be asked gets one line."""

import json

import pytest
import torch

from partita.cli import main
from partita.estimators.best_of import best_of_kl
from partita.lab.best_of import curve
from partita.policies.ensemble import Ensemble
from partita.tasks.preferences.lab import Lab

PLAIN = ["evaluate", "tiny-0.3m", "--task", "lab", "--task.judge", "proxy", "--task.size", "8", "--size", "4"]


def said(capsys, *words):
    main([*PLAIN, *words])
    return capsys.readouterr().out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([*PLAIN, *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_curve_by_hand():
    score, judged = torch.tensor([[1.0, 3.0], [5.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    one, two = curve(score, judged, [1, 2])
    assert (one["value"], two["value"]) == (pytest.approx(2.75), pytest.approx(2.5))
    assert (one["judge"], two["judge"], two["kl"]) == pytest.approx((0.5, 1.0, best_of_kl(2)))
    assert one["low"] < one["value"] < one["high"]


def test_the_best_by_the_score_itself_rises(capsys):
    found = json.loads(said(capsys, "--best-of", "1,4,8", "--json"))
    values = [row["value"] for row in found["values"]]
    assert [row["n"] for row in found["values"]] == [1, 4, 8] and values == sorted(values) and found["samples"] == 8
    assert [row["judge"] for row in found["values"]] == pytest.approx(values)
    first, last = json.loads(said(capsys, "--best-of", "1,8", "--judge", "part:proxy", "--json"))["values"]
    assert first["value"] == pytest.approx(values[0]) and last["value"] <= values[-1]
    assert last["judge"] > first["judge"]


def test_an_ensemble_judges(capsys, tmp_path):
    policy = Ensemble(members=2).build(Lab(size=4), True, torch.Generator().manual_seed(0))
    policy.save(tmp_path / "run" / "policy")
    words = ("--best-of", "1,4", "--judge", str(tmp_path / "run"))
    text = said(capsys, *words, "--how", "uwo", "--uncertainty", "1")
    assert "(2 models, uwo)" in text and len(text.splitlines()) == 4
    found = json.loads(said(capsys, *words, "--json"))
    assert (found["models"], found["how"]) == (2, "wco") and found["values"][1]["judge"] > found["values"][0]["judge"]
    found = json.loads(said(capsys, *words, "--json", "--how", "mean"))
    assert found["values"][0]["judge"] == pytest.approx(0, abs=1e-6)  # each model is put on one scale


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--best-of", "0"), "--best-of"),
        (("--best-of", "8", "--samples", "4"), "give --samples 8 or more"),
        (("--best-of", "4", "--judge", "part:style"), "the verifier gives no such part"),
        (("--best-of", "4", "--judge", "nowhere"), "--judge: nowhere has no value_head"),
        (("--best-of", "4", "--how", "least"), "expected one of mean, wco, uwo"),
        (("--best-of", "4", "--how", "wco"), "name these: --judge RUN"),
        (("--best-of", "4", "--temperature", "0"), "--temperature: expected a number above 0"),
        (("--best-of", "4", "--k", "2"), "--k"),
    ],
)
def test_what_cannot_be_asked_gets_one_line(capsys, words, message):
    error = refused(capsys, *words)
    assert message in error and error.count("\n") == 1


def test_worlds_and_environments_are_refused(capsys):
    for task in ("lookup", "cartpole"):
        with pytest.raises(SystemExit):
            main(["evaluate", "tiny-0.3m", "--task", task, "--best-of", "2", "--size", "2"])
        assert capsys.readouterr().err.count("\n") == 1
