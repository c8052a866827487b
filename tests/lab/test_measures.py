"""Measures of runs: every summary worked out by hand."""

from __future__ import annotations

import json

import pytest

from partita.core.errors import UserError
from partita.lab.measures import SMOOTH, check, measured, summarised

RAMP = [float(i) for i in range(1, 41)]  # 1, 2, ..., 40


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("late", 38.5),  # 37, 38, 39, 40
        ("last", 40.0), ("mean", 20.5), ("area", 20.5), ("max", 40.0), ("min", 1.0), ("sum", 820.0),
        ("to=10.5", 15.0),  # mean of 6 to 15
        ("to=35.5", 40.0), ("to=36", 40.0),  # reached by the last step, and not at all
    ],
)  # fmt: skip
def test_summaries(summary, expected):
    assert summarised(RAMP, summary) == expected


def test_a_lucky_start_does_not_reach_a_goal():
    values = [9.0] + [0.0] * SMOOTH + [1.0] * SMOOTH
    assert summarised(values, "to=0.95") == 21.0
    assert summarised(values, "to=0.55") == 10.0  # the mean of the first ten is 0.9
    assert summarised([3.0], "late") == 3.0


def run(folder, rows, after=None):
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {"seconds": 7.5, "value": 2.0} | ({} if after is None else {"after": {"mean": after}})


def test_measures_of_a_run(tmp_path):
    rows = [{"step": i, "entropy": 1.0 / i, "success": 0.1 * i} for i in (1, 2, 3, 4)] + [{"step": 5}]
    result = run(tmp_path, rows, after=0.75)
    assert measured("success", tmp_path, result) == 0.75
    assert measured("success:max", tmp_path, result) == 0.4
    assert measured("entropy", tmp_path, result) == 0.25  # late: of four values the last
    assert measured("entropy:min", tmp_path, result) == 0.25
    assert measured("seconds", tmp_path, result) == 7.5
    assert measured("value", tmp_path, result) == 2.0


def test_measures_that_are_not_there(tmp_path):
    result = run(tmp_path, [{"step": 1, "entropy": 1.0}])
    with pytest.raises(UserError, match="did you mean entropy"):
        measured("entrpy", tmp_path, result)
    with pytest.raises(UserError, match="was not evaluated; give --eval-size above 0, or success:late"):
        measured("success", tmp_path, result)
    with pytest.raises(UserError, match="use --metric return"):
        measured("success", tmp_path, {"after": {"mean": 180.0}})


@pytest.mark.parametrize("metric", ["success:final", "success:to=", "success:to=x", "success:to=nan", "success:"])
def test_summaries_that_do_not_exist(metric):
    with pytest.raises(UserError, match="no summary"):
        check(metric)


@pytest.mark.parametrize("metric", ["success", "entropy:late", "success:to=0.8", "return:to=-1e2"])
def test_summaries_that_do(metric):
    check(metric)
