"""Statistics of comparisons: cases worked out by hand, agreement with SciPy, coverage, invariances, bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from partita.core.errors import UserError
from partita.lab.statistics import (
    Estimate,
    bootstrap,
    consistent,
    holm,
    paired_effect,
    paired_p,
    paired_test,
    percentile,
    simultaneous,
    verdict,
)

T_975_3 = 3.182446305284263  # Student's t with 3 degrees of freedom
T_975_7 = 2.3646242510102993
T_995_3 = 5.840909309733355
few = settings(max_examples=25, deadline=None, derandomize=True)
pairs = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=9)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_estimate_prints_two_figures_of_its_width():
    assert str(Estimate(0.31, 0.20, 0.42)) == "0.31 [0.20, 0.42]"
    assert str(Estimate(471.26, 463.1, 488.8)) == "471 [463, 489]"
    assert str(Estimate(0.00123, 0.0011, 0.0013)) == "0.00123 [0.00110, 0.00130]"
    assert str(Estimate(0.5, -math.inf, math.inf)) == "0.50 [-inf, inf]"
    assert str(Estimate(0.0, 0.0, 0.0)) == "0.00 [0.00, 0.00]"
    assert str(Estimate(-0.001, -0.2, 0.2)) == "0.00 [-0.20, 0.20]"


def test_difference_is_a_student_interval_of_paired_differences():
    effect = paired_effect([11.0, 22.0, 33.0, 46.0], [10.0, 20.0, 30.0, 40.0])  # differences 1, 2, 3, 6
    half = T_975_3 * math.sqrt(14 / 3) / 2
    assert ends(effect) == pytest.approx((3.0, 3 - half, 3 + half), rel=1e-12)


def test_ratio_to_a_control_without_spread_is_the_student_interval_divided_by_it():
    effect = paired_effect([1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 2.0, 2.0], kind="ratio")
    half = T_975_3 * math.sqrt(14 / 3) / 2
    assert ends(effect) == pytest.approx((1.5, (3 - half) / 2, (3 + half) / 2), rel=1e-12)


def test_ends_of_the_ratio_solve_fiellers_equation():
    generator = np.random.default_rng(0)
    y = generator.uniform(0.5, 1.5, size=8)
    x = 1.4 * y + generator.normal(scale=0.2, size=8)
    effect = paired_effect(x, y, kind="ratio")
    assert effect.value == pytest.approx(x.mean() / y.mean())
    assert effect.low < effect.value < effect.high
    for end, sign in ((effect.low, 1), (effect.high, -1)):
        rest = x - end * y
        assert sign * rest.mean() == pytest.approx(T_975_7 * rest.std(ddof=1) / math.sqrt(8), rel=1e-9)


def test_ratio_of_a_control_that_may_be_zero_is_unbounded():
    noisy = [0.1, -3.0, 4.0, -0.5]  # mean 0.15, standard error 1.4
    assert ends(paired_effect([1.0, 2.0, 3.0, 4.0], noisy, "ratio"))[1:] == (-math.inf, math.inf)


def test_exact_multiples_and_single_seeds():
    y = [1.1, 0.7, 1.3]
    assert ends(paired_effect([3 * v for v in y], y, "ratio")) == pytest.approx((3.0, 3.0, 3.0), rel=1e-9)
    assert ends(paired_effect([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])) == (0.5, 0.5, 0.5)
    assert ends(paired_effect([0.1, 0.1, 0.1], [0.0, 0.0, 0.0])) == (0.1, 0.1, 0.1)  # whose mean rounds up
    assert ends(paired_effect([4.0], [2.0])) == (2.0, -math.inf, math.inf)
    assert ends(paired_effect([4.0], [2.0], "ratio")) == (2.0, -math.inf, math.inf)


@given(pairs, st.integers(-20, 20), st.integers(1, 9), st.randoms(use_true_random=False))
@few
def test_effect_invariances(values, shift, scale, random):
    x, y = (np.array(column, dtype=float) for column in zip(*values, strict=True))
    effect = np.array(ends(paired_effect(x, y)))
    assert np.array(ends(paired_effect(x + shift, y + shift))) == pytest.approx(effect, abs=1e-9)
    assert np.array(ends(paired_effect(x * scale, y * scale))) == pytest.approx(effect * scale, abs=1e-9)
    assert np.array(ends(paired_effect(y, x))) == pytest.approx(-effect[[0, 2, 1]], abs=1e-9)
    order = random.sample(range(len(x)), len(x))
    assert np.array(ends(paired_effect(x[order], y[order]))) == pytest.approx(effect, abs=1e-9)
    assert paired_p(x[order], y[order]) == paired_p(x, y) == paired_p(y, x)


@given(pairs, st.sampled_from((0.5, 2.0, 8.0)))
@few
def test_ratio_excludes_one_exactly_when_the_difference_excludes_zero(values, scale):
    x, y = (np.array(column, dtype=float) + 60 for column in zip(*values, strict=True))
    ratio, difference = paired_effect(x, y, "ratio"), paired_effect(x, y)
    assert np.array(ends(paired_effect(x * scale, y, "ratio"))) == pytest.approx(scale * np.array(ends(ratio)))
    if math.isfinite(ratio.low) and difference.low != difference.high:
        assert (ratio.low > 1) == (difference.low > 0)
        assert (ratio.high < 1) == (difference.high < 0)


def test_intervals_cover_what_they_promise_with_eight_seeds():
    generator = np.random.default_rng(1)
    tries, difference, ratio, family = 1000, 0, 0, 0
    for _ in range(tries):
        seed_effect = generator.normal(size=8)  # what the arms of one seed share
        arms = 4 + seed_effect + generator.normal(size=(4, 8))
        treatment = 2 + arms[1]
        difference += abs(paired_effect(treatment, arms[0]).value - 2) <= (
            paired_effect(treatment, arms[0]).high - paired_effect(treatment, arms[0]).value
        )
        low, high = ends(paired_effect(1.5 * arms[1], arms[0], "ratio"))[1:]
        ratio += low <= 1.5 <= high
        family += all(e.low <= 0 <= e.high for e in simultaneous(arms[0], *arms[1:]))
    error = 3 * math.sqrt(0.95 * 0.05 / tries)  # 0.021; BCa's 0.89 is far outside
    assert abs(difference / tries - 0.95) < error
    assert abs(ratio / tries - 0.95) < error
    assert -error < family / tries - 0.95 < error + 0.02  # Bonferroni errs on the wide side


def test_simultaneous_is_bonferroni():
    generator = np.random.default_rng(2)
    control, one, two = generator.normal(size=(3, 6))
    found = simultaneous(control, one, two, level=0.9)
    assert found == (paired_effect(one, control, level=0.95), paired_effect(two, control, level=0.95))
    assert simultaneous(control, one) == (paired_effect(one, control),)


def test_sign_flip_p_worked_out():
    zero = [0.0, 0.0, 0.0]
    assert paired_p([1.0, 2.0, 3.0], zero) == 2 / 8  # only all plus and all minus reach 6
    assert paired_p([2.0, 1.0, -1.0], zero) == 6 / 8  # |2 +-1 +-1| is 4, 2, 2, 0 for either sign of the 2
    assert paired_p(zero, zero) == 1.0
    assert paired_p([5.0], [1.0]) == 1.0
    # The sum is 0.6. Signs of 0.7 0.3 0.4: +++ 1.4, ++- 0.6 and +-+ 0.8 reach it, +-- 0 does not.
    assert paired_p([0.7, 0.3, 0.0, -0.4], [0.0] * 4) == 6 / 8
    assert paired_p([0.3, 0.3, 0.3], [0.2, 0.1, 0.1]) == 2 / 8


def test_p_agrees_with_scipy_and_names_its_test():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, 7)) + np.array([[0.8], [0.0]])
    exact = stats.permutation_test(
        (x, y), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert paired_p(x, y) == pytest.approx(exact.pvalue, abs=1e-12)
    x, y = generator.normal(size=(2, 13)) + np.array([[0.8], [0.0]])
    assert paired_p(x, y) == pytest.approx(stats.ttest_rel(x, y).pvalue, rel=1e-9)
    assert paired_p(np.ones(13), np.zeros(13)) == 2.0**-12
    assert (paired_test(12), paired_test(13)) == ("exact sign-flip permutation test", "paired t test")


def test_holm_worked_out():
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and the last may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
@few
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p, random):
    values = np.array(p)
    adjusted = holm(values)
    assert (adjusted >= values).all() and (adjusted <= np.minimum(1, len(p) * values)).all()
    order = random.sample(range(len(p)), len(p))
    assert (holm(values[order]) == adjusted[order]).all()


def test_bootstrap_is_bca_of_scipy_and_the_same_every_time():
    x = np.random.default_rng(4).exponential(size=20)
    found = bootstrap(np.mean, x, resamples=999, seed=5)
    peer = stats.bootstrap((x,), np.mean, n_resamples=999, method="BCa", random_state=np.random.default_rng(5))
    assert ends(found) == (x.mean(), *peer.confidence_interval)
    assert found == bootstrap(np.mean, x, resamples=999, seed=5)
    assert found != bootstrap(np.mean, x, resamples=999, seed=6)
    assert found.high - found.value > found.value - found.low  # BCa leans with the skew


def test_bootstrap_of_pairs_keeps_them_together():
    generator = np.random.default_rng(6)
    x = 10 * generator.normal(size=12)
    y = x + 0.1 * generator.normal(size=12)

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    together = bootstrap(difference, x, y, paired=True, resamples=999)
    apart = bootstrap(difference, x, y, resamples=999)
    assert together.value == apart.value == pytest.approx(float(np.mean(x - y)))
    assert together.high - together.low < 0.2 < 4 < apart.high - apart.low


def test_bootstrap_of_degenerate_samples():
    assert ends(bootstrap(np.mean, [2.0])) == (2.0, -math.inf, math.inf)
    assert ends(bootstrap(np.mean, [2.0, 2.0, 2.0], resamples=200)) == (2.0, 2.0, 2.0)
    found = bootstrap(np.median, [1.0, 1.0, 1.0, 1.0, 9.0], resamples=500)
    assert found.value == 1.0 and found.low == 1.0 and found.high in (1.0, 9.0)

    def correlation(a, b):
        return np.corrcoef(a, b)[0, 1]

    # Of three pairs, one resample in nine repeats one pair three times and has no correlation.
    assert ends(bootstrap(correlation, [0.0, 1.0, 2.0], [0.0, 2.0, 1.0], paired=True, resamples=300)) == (
        pytest.approx(0.5), -math.inf, math.inf,
    )  # fmt: skip


def test_percentile_holds_its_share_and_spreads_undefined_draws():
    draws = np.arange(101.0)
    assert percentile(draws[::-1], 0.9) == (5.0, 95.0)
    draws[:3] = np.nan  # three of 101 become -inf below and inf above, so that the ends move by three
    assert percentile(draws, 0.9) == (5.0, 98.0)


@pytest.mark.parametrize(
    ("low", "high", "better", "threshold", "expected"),
    [
        (0.1, 0.5, "higher", 0.0, "holds"),
        (-0.1, 0.5, "higher", 0.0, "unclear"),
        (-0.5, -0.1, "higher", 0.0, "fails"),
        (-0.5, -0.1, "lower", 0.0, "holds"),
        (0.1, 0.5, "lower", 0.0, "fails"),
        (1.1, 1.9, "higher", 2.0, "fails"),
        (2.1, 2.9, "higher", 2.0, "holds"),
        (0.0, 0.0, "higher", 0.0, "unclear"),
        (0.0, 0.4, "higher", 0.0, "unclear"),
        (-math.inf, math.inf, "lower", 0.0, "unclear"),
        (-0.04, 0.03, "equal", 0.05, "holds"),
        (-0.06, 0.03, "equal", 0.05, "unclear"),
        (0.06, 0.09, "equal", 0.05, "fails"),
        (-0.09, -0.06, "equal", 0.05, "fails"),
        (-0.06, 0.06, "equal", 0.05, "unclear"),
        (0.01, 0.09, "equal", 0.05, "unclear"),
        (-0.09, -0.01, "equal", 0.05, "unclear"),
    ],
)
def test_verdict(low, high, better, threshold, expected):
    assert verdict(Estimate((low + high) / 2 if low > -math.inf else 0.0, low, high), better, threshold) == expected


def test_verdict_of_equal_ratios():
    assert verdict(Estimate(1.0, 0.97, 1.02), "equal", 0.05, centre=1.0) == "holds"
    assert verdict(Estimate(1.2, 1.1, 1.3), "equal", 0.05, centre=1.0) == "fails"


def test_consistent_is_a_prediction_interval():
    committed = [1.0, 2.0, 3.0, 6.0]  # mean 3, variance 14/3
    half = T_995_3 * math.sqrt(14 / 3) * math.sqrt(1 / 4 + 1 / 2)
    same, low, high = consistent(committed, [4.0, 5.0])
    assert same and (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-9)
    assert consistent(committed, [3 + half + 0.1] * 2)[0] is False
    assert consistent(committed, [3 - half - 0.1] * 2)[0] is False


def test_a_collapsed_rerun_is_noticed_whatever_its_spread():
    committed = [0.80, 0.82, 0.79, 0.81, 0.80, 0.83, 0.78, 0.81]
    assert consistent(committed, [0.81, 0.79])[0]
    assert not consistent(committed, [0.81, 0.05])[0]


def test_consistent_without_spread():
    assert consistent([1.0, 1.0, 1.0], [1.0, 1.0 + 1e-9])[0]
    assert not consistent([1.0, 1.0, 1.0], [1.0, 1.0 + 1e-6])[0]
    assert consistent([1.0, 1.0, 1.0], [1.0, 0.99], tolerance=0.01)[0]
    assert consistent([0.0, 0.0], [0.0])[0]
    assert not consistent([0.0, 0.0], [1e-6])[0]
    assert consistent([1.0], [5.0]) == (True, -math.inf, math.inf)


def test_prediction_interval_covers():
    generator = np.random.default_rng(7)
    tries = 1500
    inside = sum(consistent(generator.normal(size=8), generator.normal(size=2), 0.9)[0] for _ in range(tries))
    assert abs(inside / tries - 0.9) < 3 * math.sqrt(0.09 / tries)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paired_effect([], []), "treatment: empty"),
        (lambda: paired_effect([1.0, 2.0], [1.0]), "treatment: 2 seeds, control has 1"),
        (lambda: paired_effect([1.0, 2.0, 3.0], [1.0, 2.0, math.nan]), r"control\[2\]: nan"),
        (lambda: paired_effect([1.0, math.inf], [1.0, 2.0]), r"treatment\[1\]: inf"),
        (lambda: paired_effect([[1.0]], [1.0]), r"treatment: expected rank 1, got shape \(1, 1\)"),
        (lambda: paired_effect(["a"], [1.0]), "treatment: expected numbers"),
        (lambda: paired_effect([1.0, 2.0], [0.0, 0.0], "ratio"), "control: a ratio to its mean, 0,"),
        (lambda: paired_effect([1.0, 2.0], [-1.0, -2.0], "ratio"), "kind='difference'"),
        (lambda: paired_effect([1.0], [1.0], "ratios"), "did you mean ratio"),
        (lambda: paired_effect([1.0], [1.0], level=95), "level: 95"),
        (lambda: paired_p([1.0], [1.0, 2.0]), "same seeds"),
        (lambda: simultaneous([1.0]), "treatments: none"),
        (lambda: holm([0.1, 1.2]), r"p_values\[1\]: 1.2"),
        (lambda: holm([]), "p_values: empty"),
        (lambda: bootstrap(np.mean), "samples: none"),
        (lambda: bootstrap(np.mean, [1.0, 2.0], resamples=5), "resamples: 5"),
        (lambda: bootstrap(np.mean, [1.0, math.nan]), r"samples\[0\]\[1\]: nan"),
        (lambda: bootstrap(lambda x, y: 0.0, [1.0], [1.0, 2.0], paired=True), r"lengths \[1, 2\] differ"),
        (lambda: bootstrap(lambda x: math.nan, [1.0, 2.0]), "statistic: NaN"),
        (lambda: verdict(Estimate(0, -1, 1), "equal", 0.0), "needs a margin"),
        (lambda: verdict(Estimate(0, -1, 1), "higer"), "did you mean higher"),
        (lambda: verdict(Estimate(0, math.nan, 1)), "estimate:"),
        (lambda: consistent([1.0, 2.0], []), "again: empty"),
        (lambda: consistent([1.0, 2.0], [1.0], tolerance=-1), "tolerance: -1"),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
