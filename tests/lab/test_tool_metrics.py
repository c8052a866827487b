"""What tools cost: right answers for each call and calls for a problem, their intervals, and what is printed."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from partita.core.errors import UserError
from partita.lab.evaluate import rollout
from partita.lab.passk import main
from partita.lab.tools import mean_calls, productivity, rows
from partita.loops.run import Generators
from partita.policies.language import Language
from partita.tasks.language.strings import Strings
from partita.tasks.worlds.keydoor import Keydoor
from partita.tasks.worlds.lookup import Lookup


@pytest.fixture(scope="module")
def policy():
    return Language(model="tiny-0.3m").build(None, False, Generators(0)["init"])


def test_productivity_is_a_ratio_of_sums_with_fiellers_interval_by_hand():
    right, calls = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0, 2.0, 1.0, 1.0])
    found, t, n = productivity(right, calls), stats.t.ppf(0.975, 5), 6
    assert found.value == pytest.approx(4 / 10)  # not the mean of ratios, 0.64
    for end in (found.low, found.high):
        apart = right - end * calls
        assert abs(apart.mean()) == pytest.approx(t * apart.std(ddof=1) / math.sqrt(n))
    assert found.low < 0.4 < found.high


def test_calls_have_students_interval():
    found = mean_calls([1.0, 2.0, 3.0, 2.0])
    half = stats.t.ppf(0.975, 3) * math.sqrt(2 / 3) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert mean_calls([0.0, 0.0, 3.0]).low == 0.0
    even = mean_calls([2.0] * 5)
    assert (even.low, even.high) == (2.0, 2.0)


def test_intervals_cover_the_true_productivity():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        calls = rng.integers(0, 4, 60).astype(float)
        right = (rng.random(60) < 0.2 + 0.2 * (calls > 1)).astype(float)
        found = productivity(right, calls)
        held += found.low <= 0.3 / 1.5 <= found.high
    assert 0.92 < held / 400 < 0.98


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30), st.integers(2, 5))
def test_counting_calls_in_another_unit_divides_and_order_is_nothing(pairs, unit):
    right, calls = np.array([float(r) for r, _ in pairs]), np.array([float(c) for _, c in pairs])
    if not calls.any():
        return
    found, other = productivity(right, calls), productivity(right, unit * calls)
    assert 0 <= found.low <= found.value <= found.high
    for end in ("value", "low", "high"):
        assert getattr(other, end) == pytest.approx(getattr(found, end) / unit, abs=1e-9)
    assert productivity(right[::-1], calls[::-1]).value == pytest.approx(found.value)


def test_no_call_at_all_is_said():
    with pytest.raises(UserError, match="no tool was called in 3 problems"):
        productivity([1.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    assert mean_calls([0.0, 0.0]).value == 0.0


def test_rows_are_what_the_trajectories_did(policy):
    task = Lookup(level=1)
    batch = rollout(policy, task, 24, 5)
    calls = [record["parts"]["calls"] for record in batch.records]
    right = sum(record["score"] == 1 for record in batch.records)
    found = {row["metric"]: row for row in rows(policy, task, "tool_productivity", 24, 5)}
    assert list(found) == ["tool_productivity", "tool_calls", "success"]
    assert found["tool_productivity"]["value"] == pytest.approx(right / sum(calls))
    assert found["tool_calls"]["value"] == pytest.approx(sum(calls) / 24)
    assert found["success"]["value"] == pytest.approx(right / 24)
    assert [row["metric"] for row in rows(policy, task, "tool_calls", 24, 5)] == ["tool_calls"]


def test_trajectories_whose_world_broke_are_left_out(policy, monkeypatch):
    batch = rollout(policy, Lookup(level=1), 8, 5)
    broken = batch.mask.any(1) & (batch.group < 4)
    records = tuple({**r, "parts": {} if b else r["parts"]} for r, b in zip(batch.records, broken, strict=True))
    monkeypatch.setattr("partita.lab.tools.rollout", lambda *_: batch.but(failed=broken, records=records))
    calls = [record["parts"]["calls"] for record in batch.records[4:]]
    assert rows(policy, Lookup(level=1), "tool_calls", 8, 5)[0]["value"] == pytest.approx(sum(calls) / 4)


def test_the_command_prints_them(capsys):
    words = ["tiny-0.3m", "--task", "lookup", "--task.level", "1", "--size", "12", "--metric"]
    main([*words, "tool_productivity"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny-0.3m on lookup: 12 problems" and lines[1].startswith("tool_productivity ")
    assert lines[2].startswith("tool_calls ") and lines[3].startswith("success ")
    main([*words, "tool_calls", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["metric"] for row in found["values"]] == ["tool_calls"] and found["problems"] == 12


def test_an_end_that_is_not_known_is_null_in_json(capsys):
    main(["tiny-0.3m", "--task", "lookup", "--task.level", "1", "--size", "1", "--metric", "tool_calls", "--json"])
    assert json.loads(capsys.readouterr().out)["values"][0]["high"] is None


@pytest.mark.parametrize(("task", "why"), [(Keydoor(), "counts no tool calls"), (Strings(), "has no tools to call")])
def test_tasks_without_tools_are_refused(policy, task, why):
    with pytest.raises(UserError, match=why):
        rows(policy, task, "tool_calls", 4, 0)
