"""Robust summaries: worked cases, agreement with SciPy, honest ends where every run agrees, invariances, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from partita.core.errors import UserError
from partita.lab.statistics import Estimate
from partita.lab.summaries import iqm, iqm_estimate, performance_profile, probability_of_improvement

Z2 = 1.959963984540054**2
few = settings(max_examples=25, deadline=None, derandomize=True)
scores = st.lists(st.integers(-9, 9), min_size=1, max_size=9)


def ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_iqm_worked_out():
    assert iqm([8, 1, 7, 2, 6, 3, 5, 4]) == 4.5  # of 1..8 the middle four are 3 4 5 6
    assert iqm([100, 1, 2, 3, 4]) == 3.0  # a quarter of five is one from each end: 2 3 4
    assert iqm([1, 2, 9]) == 4.0  # of three nothing is cut
    assert iqm([[1, 2], [3, 40]]) == 2.5
    assert iqm([1.0, 2.0, 3.0, math.inf]) == 2.5  # one in four may never arrive
    assert iqm([1.0, 2.0, math.inf, math.inf]) == math.inf


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.randoms(use_true_random=False))
@few
def test_iqm_is_scipys_trimmed_mean(values, random):
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-9)
    assert iqm(random.sample(values, len(values))) == pytest.approx(iqm(values), abs=1e-9)
    assert iqm([3 - 2 * v for v in values]) == pytest.approx(3 - 2 * iqm(values), abs=1e-9)


def test_iqm_interval_of_two_seeds_is_that_of_the_binomial():
    # Two seeds of one task: a resample is (0,0), (0,1), (1,0) or (1,1), so that its mean is 0, 1/2 or 1.
    assert ends(iqm_estimate([0.0, 1.0], resamples=500)) == (0.5, 0.0, 1.0)
    assert ends(iqm_estimate([0.0, 1.0], level=0.4, resamples=4000)) == (0.5, 0.5, 0.5)


def test_iqm_resamples_within_tasks():
    # No seed differs within a task, so a stratified resample never differs, however far apart the tasks are. Cut three
    # of the twelve at each end: 0, four times 10, 100.
    assert ends(iqm_estimate([[0.0, 10.0, 100.0]] * 4, resamples=200)) == (pytest.approx(140 / 6),) * 3
    # Seeds are picked task by task: k of the eight values are 1, k binomial, and the interquartile mean is 0 for k < 3
    # (0.145), 1/4 for k = 3 (to 0.363). Were rows of seeds picked whole, a quarter of the resamples would be all 0.
    table = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    assert ends(iqm_estimate(table, level=0.6, resamples=4000)) == (0.5, 0.25, 0.75)
    assert ends(iqm_estimate(table, level=0.8, resamples=4000)) == (0.5, 0.0, 1.0)


def test_iqm_estimate_is_reproducible_equivariant_and_covers():
    x = np.random.default_rng(0).normal(size=(8, 3))
    found = iqm_estimate(x, resamples=500, seed=1)
    assert found == iqm_estimate(x, resamples=500, seed=1) != iqm_estimate(x, resamples=500, seed=2)
    assert ends(iqm_estimate(4 + 2 * x, resamples=500, seed=1)) == pytest.approx([4 + 2 * v for v in ends(found)])
    assert ends(iqm_estimate([3.0])) == (3.0, -math.inf, math.inf)
    generator, inside = np.random.default_rng(3), 0
    for _ in range(400):
        sample = iqm_estimate(generator.normal(size=(10, 2)), resamples=300)
        inside += sample.low <= 0 <= sample.high
    assert 0.89 < inside / 400 < 0.98


def test_iqm_estimate_in_chunks_has_every_draw():
    x = 1000 + np.random.default_rng(1).normal(size=(300, 20))  # 6,000 numbers: 166 resamples at once
    found = iqm_estimate(x, resamples=400)
    assert found.low < found.value < found.high
    spread = x.std() / math.sqrt(x.size)  # of a mean of all; that of the interquartile mean is 1.1 times as large
    assert 0.8 < (found.high - found.low) / (2 * 1.96 * spread) < 1.5


def test_probability_of_improvement_with_ties():
    # x = 1, 2, 3 against y = 2, 2: 1 loses twice, 2 ties twice, 3 wins twice.
    assert probability_of_improvement([1, 2, 3], [2, 2]).value == 0.5
    assert probability_of_improvement([2, 3], [1, 2]).value == 3.5 / 4
    assert probability_of_improvement([1, 3, 5, 7], [1, 2, 6, 6], paired=True).value == 2.5 / 4
    assert probability_of_improvement([math.inf, 1.0], [math.inf, 2.0]).value == (0.5 + 1 + 0 + 0) / 4


@given(scores, scores, st.integers(1, 5), st.integers(-5, 5))
@few
def test_probability_is_mann_whitney_and_swaps_to_one(x, y, scale, shift):
    found, swapped = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert found.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    assert ends(swapped) == pytest.approx((1 - found.value, 1 - found.high, 1 - found.low), abs=1e-7)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert probability_of_improvement([scale * v + shift for v in x], [scale * v + shift for v in y]) == found


def test_newcombes_ends():
    found = probability_of_improvement([1.0], [0.0])  # one run each: 1 - p = z^2 p
    assert ends(found) == pytest.approx((1.0, 1 / (1 + Z2), 1.0), abs=1e-7)
    n, m = 8, 6
    found = probability_of_improvement(range(1, 9), [0.5, 1.5, 2.5, 3.5, 4.5, 0.5])
    assert found.value == (8 + 7 + 6 + 5 + 4 + 8) / (n * m)
    for p in (found.low, found.high):
        wide = 1 + ((n + m) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        assert (found.value - p) ** 2 == pytest.approx(Z2 * p * (1 - p) / (n * m) * wide, rel=1e-6)
    assert found.low < found.value < found.high


def test_paired_probability_has_wilsons_interval():
    found = probability_of_improvement([1.0] * 7 + [0.0] * 3, [0.5] * 10, paired=True)
    n, p = 10, 0.7
    centre = (p + Z2 / (2 * n)) / (1 + Z2 / n)
    half = math.sqrt(Z2 * (p * (1 - p) / n + Z2 / (4 * n * n))) / (1 + Z2 / n)
    assert ends(found) == pytest.approx((0.7, centre - half, centre + half), rel=1e-9)
    clean = probability_of_improvement([1.0] * 8, [0.0] * 8, paired=True)
    assert ends(clean) == pytest.approx((1.0, 8 / (8 + Z2), 1.0))  # eight of eight is not certainty


def test_probability_interval_covers_near_one():
    generator, tries, inside = np.random.default_rng(5), 1000, 0
    truth = stats.norm.cdf(2 / math.sqrt(2))  # 0.92, where the percentile bootstrap covers 0.80
    for _ in range(tries):
        found = probability_of_improvement(2 + generator.normal(size=8), generator.normal(size=8))
        inside += found.low <= truth <= found.high
    assert 0.935 < inside / tries < 0.985


def test_profile_counts_runs_strictly_above():
    share, low, high = performance_profile([1, 2, 2, 4], [0, 1, 2, 3, 4])
    assert share.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]
    assert low[-1] == 0.0 and high[-1] == pytest.approx(Z2 / (4 + Z2))
    assert high[0] == 1.0 and low[0] == pytest.approx(4 / (4 + Z2))
    for k, (a, b) in enumerate(zip(low[1:4], high[1:4], strict=True)):
        peer = stats.binomtest([3, 1, 1][k], 4).proportion_ci(method="wilson")
        assert (a, b) == pytest.approx((peer.low, peer.high))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: iqm([]), "x: empty"),
        (lambda: iqm([1.0, -math.inf]), r"x\[1\]: -inf"),
        (lambda: iqm_estimate([[1.0, 2.0], [3.0, math.nan]]), r"x\[1, 1\]: nan"),
        (lambda: iqm_estimate([1.0, 2.0], resamples=0), "resamples: 0"),
        (lambda: iqm_estimate([[1.0], [1.0, 2.0]]), "x: expected numbers in rows of equal length"),
        (lambda: probability_of_improvement([1.0, 2.0], [1.0], paired=True), "x: 2 runs, y has 1"),
        (lambda: probability_of_improvement([1.0], [math.nan]), r"y\[0\]: nan"),
        (lambda: probability_of_improvement([1.0], [1.0], level=1.0), "level: 1.0"),
        (lambda: performance_profile([1.0], [math.inf]), r"thresholds\[0\]: inf"),
        (lambda: performance_profile([], [1.0]), "scores: empty"),
    ],
)
def test_bad_summaries_are_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
