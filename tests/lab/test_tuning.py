"""Tuning: which trials are tried, that they are recorded, and that they are tried once."""

from __future__ import annotations

import json
import math

import pytest

from partita import cli
from partita.core.errors import UserError
from partita.lab.jobs import Job, perform
from partita.lab.tuning import Range, Tuning, grid, size, space

CALLS: list[tuple[float, int]] = []


class Here:
    def run(self, jobs, watch):
        for job in jobs:
            perform(job)


def score(x, seed):
    """Best at x = 3e-3, whatever the seed."""
    CALLS.append((x, seed))
    return -abs(math.log10(x) - math.log10(3e-3)) + seed * 0.0


def tuning(folder, search, trials, better="higher"):
    def job(where, settings, seed):
        return Job(where, call="test_tuning:score", arguments={**settings, "seed": seed})

    return Tuning(folder, job, lambda job: job.result()["value"], search, trials, (1000, 1001), better)


@pytest.fixture(autouse=True)
def _fresh():
    CALLS.clear()


def test_a_small_space_is_tried_whole_and_the_best_is_found(tmp_path):
    record = tuning(tmp_path, {"x": (1e-3, 3e-3, 1e-2)}, 3).run(Here())
    assert record["best"] == {"x": 3e-3} and record["trials"] == 3 and record["sampler"] == "every combination"
    assert sorted(CALLS) == sorted((x, s) for x in (1e-3, 3e-3, 1e-2) for s in (1000, 1001))
    assert json.loads((tmp_path / "tuning.json").read_text()) == record
    assert [row["values"] for row in record["results"]] == [[row["mean"]] * 2 for row in record["results"]]


def test_lower_is_better_where_it_is_said(tmp_path):
    assert tuning(tmp_path, {"x": (3e-3, 1e-1)}, 2, "lower").run(Here())["best"] == {"x": 1e-1}


def test_a_range_is_searched_by_an_estimator_that_closes_in(tmp_path):
    pytest.importorskip("optuna")
    record = tuning(tmp_path, {"x": Range(1e-5, 1e-1, log=True)}, 24).run(Here())
    rows = [row["settings"]["x"] for row in record["results"]]
    assert len(rows) == 24 and all(1e-5 <= x <= 1e-1 for x in rows)
    assert 1.5e-3 < record["best"]["x"] < 6e-3
    far = [abs(math.log10(x / 3e-3)) for x in rows]
    assert sum(far[12:]) < sum(far[:12])


def test_taken_up_again_it_tries_the_same_and_repeats_nothing(tmp_path):
    pytest.importorskip("optuna")
    search = {"x": Range(1e-5, 1e-1, log=True)}
    first = tuning(tmp_path / "a", search, 8).run(Here())
    CALLS.clear()
    stopped = tuning(tmp_path / "b", search, 5)

    class Stops(Here):
        """Killed while the second trials are carried out."""

        def run(self, jobs, watch):
            for i, job in enumerate(jobs):
                if len(CALLS) >= 11:
                    raise KeyboardInterrupt
                assert i >= 0
                perform(job)

    with pytest.raises(KeyboardInterrupt):
        tuning(tmp_path / "b", search, 8).run(Stops())
    assert stopped.trials == 5 and len(CALLS) == 11
    assert tuning(tmp_path / "b", search, 8).run(Here())["results"] == first["results"]
    assert len(CALLS) == 16


def test_the_words_of_a_search_space():
    found = space(["lr=1e-4..1e-2:log", "--credit.eps=1e-6,1e-4", "epochs=1..4", "credit=rloo,gae"], lambda n, t: t)
    assert found["lr"] == Range(1e-4, 1e-2, log=True) and found["epochs"] == Range(1, 4, whole=True)
    assert found["credit.eps"] == ["1e-6", "1e-4"] and found["credit"] == ["rloo", "gae"]
    assert size({"a": (1, 2), "b": (1, 2, 3)}) == 6 and size(found) == math.inf
    assert grid({"a": (1, 2), "b": ("x", "y")})[1] == {"a": 1, "b": "y"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "tune: name a recipe"),
        (["nope"], "recipe nope: no such recipe"),
        (["ppo", "--search", "lr"], "--search lr: expected FLAG="),
        (["ppo", "--search", "lr=2..1"], "2..1 is not a range"),
        (["ppo", "--search", "lr=-1..1:log"], "a logarithmic range must be above 0"),
        (["ppo", "--search", "lr=1..x"], "1..x is not a range of numbers"),
        (["ppo", "--search", "lr=1e-4..1e-3:cubic"], "'cubic' is no scale"),
        (["ppo", "--search", "learning=1,2"], "learning: no such field"),
        (["ppo", "--search", "lr=-1,2"], "lr: expected a number above 0"),
        (["ppo", "--trials", "0"], "--trials: expected a whole number of 1 or more"),
        (["ppo", "--better", "best"], "--better: expected higher or lower"),
        (["ppo", "--metric", "return:highest"], "no summary 'highest'"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tune", *words])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_tunes_a_recipe_and_prints_flags(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = (
        "tune ppo --task cartpole --steps 1 --batch-size 4 --rollout.steps 8 --eval-size 4 --policy.hidden 8 "
        "--search lr=1e-3,1e-2 --trials 2 --seeds 1 --jobs 1 --quiet"
    )
    cli.main(words.split())
    said = capsys.readouterr().out
    assert "runs/tune-ppo-cartpole: best of 2 trials by return: --lr 0.0" in said
    record = json.loads((tmp_path / "runs/tune-ppo-cartpole/tuning.json").read_text())
    assert [row["settings"] for row in record["results"]] == [{"lr": 1e-3}, {"lr": 1e-2}]
    with pytest.raises(SystemExit):
        cli.main(words.replace("1e-3,1e-2", "1e-3,1e-1").split())
    assert "holds a tuning of something else" in capsys.readouterr().err


def test_an_empty_search_is_refused(tmp_path):
    for search, trials in (({}, 2), ({"x": ()}, 2), ({"x": (1,)}, 0)):
        with pytest.raises(UserError):
            tuning(tmp_path, search, trials)
