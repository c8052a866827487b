"""Curves: areas and crossings worked out by hand, common grids, bands, invariances, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.lab.efficiency import align, area, curve_band, time_to

few = settings(max_examples=25, deadline=None, derandomize=True)
steps = st.lists(st.integers(1, 9), min_size=2, max_size=12)


def test_area_worked_out():
    assert area([0, 2, 4], [0, 3, 0]) == 1.5  # a triangle of base 4 and height 3: 6 / 4
    assert area([0, 1, 4], [0, 1, 1]) == (0.5 + 3) / 4
    assert area([7, 9], [2, 2]) == 2.0
    assert area([7], [2.5]) == 2.5


@given(steps, st.integers(-30, 30), st.integers(1, 9))
@few
def test_area_scales_with_y_and_not_with_x(gaps, shift, scale):
    x = np.cumsum(gaps)
    y = np.sin(x)
    assert area(scale * x + shift, y) == pytest.approx(area(x, y))
    assert area(x, scale * y + shift) == pytest.approx(scale * area(x, y) + shift)
    assert y.min() <= area(x, y) <= y.max()


def test_time_to_worked_out():
    x, y = [10, 20, 30, 40], [0.1, 0.6, 0.4, 0.9]
    assert time_to(x, y, 0.5) == 20
    assert time_to(x, y, 0.9) == 40
    assert time_to(x, y, 0.95) == math.inf
    assert time_to(x, y, 0.1) == 10
    assert time_to(x, y, 0.05, "lower") == math.inf
    assert time_to(x, [4, 3, 1, 2], 2, "lower") == 30
    # Trailing means of two, from the second point on: 0.35, 0.5, 0.65.
    assert time_to(x, y, 0.55, smooth=2) == 40
    assert time_to(x, y, 0.3, smooth=2) == 20
    assert time_to(x, y, 0.5, smooth=4) == 40


@given(steps, st.floats(-1, 1))
@few
def test_time_to_lower_is_time_to_higher_of_the_mirror(gaps, threshold):
    x = np.cumsum(gaps)
    y = np.cos(3 * x)
    assert time_to(x, y, threshold) == time_to(x, -y, -threshold, "lower")
    assert time_to(x + 5, y, threshold) == time_to(x, y, threshold) + 5


def test_align_interpolates_over_what_all_cover():
    grid, table = align([([0, 10, 20, 30], [0, 1, 2, 3]), ([10, 40], [5, 8])])
    assert grid.tolist() == [10, 20, 30]  # the first curve has three points between 10 and 30
    assert table == pytest.approx(np.array([[1, 2, 3], [5, 6, 7]]))
    grid, table = align([([0, 10, 20, 30], [0, 1, 2, 3]), ([10, 40], [5, 8])], points=5)
    assert grid.tolist() == [10, 15, 20, 25, 30]
    assert table[1] == pytest.approx([5, 5.5, 6, 6.5, 7])
    grid, table = align([([0, 10], [0, 1]), ([5, 20], [0, 3])])
    assert grid.tolist() == [5, 10] and table.tolist() == [[0.5, 1], [0, 1]]


def test_align_keeps_a_shared_grid_and_a_single_point():
    grid, table = align([([1, 2, 10], [0, 5, 1]), ([1, 2, 10], [3, 3, 4])])
    assert grid.tolist() == [1, 2, 10] and table.tolist() == [[0, 5, 1], [3, 3, 4]]
    grid, table = align([([0, 4], [0, 4]), ([4, 9], [7, 1])])
    assert grid.tolist() == [4] and table.tolist() == [[4], [7]]


def test_curve_band_worked_out():
    mean, low, high = curve_band([[1, 5, 0], [2, 5, 0], [3, 5, 0], [6, 5, 4]])
    half = 3.182446305284263 * math.sqrt(14 / 3) / 2  # t(0.975, 3), variance of 1 2 3 6, n = 4
    assert mean.tolist() == [3, 5, 1]
    assert (low[0], high[0]) == pytest.approx((3 - half, 3 + half))
    assert (low[1], high[1]) == (5, 5)
    assert high[2] - 1 == pytest.approx(1 - low[2]) and high[2] > 1
    mean, low, high = curve_band([[1, 2]])
    assert mean.tolist() == [1, 2] and low.tolist() == [-math.inf] * 2 and high.tolist() == [math.inf] * 2
    mean, low, high = curve_band([[0.1], [0.1], [0.1]])
    assert (mean[0], low[0], high[0]) == (0.1, 0.1, 0.1)


def test_curve_band_covers_point_by_point():
    generator, tries, inside = np.random.default_rng(0), 1000, np.zeros(3)
    for _ in range(tries):
        _, low, high = curve_band(generator.normal(size=(8, 3)))
        inside += (low <= 0) & (high >= 0)
    assert (abs(inside / tries - 0.95) < 0.021).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: area([], []), "curve.x: empty"),
        (lambda: area([1, 2], [1]), "curve: 2 values of x and 1 of y"),
        (lambda: area([1, 3, 2], [1, 1, 1]), r"curve.x\[2\]: 2 after 3"),
        (lambda: area([1, 1], [1, 1]), r"curve.x\[1\]: 1 after 1"),
        (lambda: area([1, 2], [1, math.nan]), r"curve.y\[1\]: nan"),
        (lambda: time_to([1, 2], [1, 2], 1, "max"), "better: 'max'"),
        (lambda: time_to([1, 2], [1, 2], 1, smooth=3), "smooth: 3; give 1 to 2"),
        (lambda: time_to([1, 2], [1, 2], math.nan), "threshold: nan"),
        (lambda: align([]), "curves: none"),
        (lambda: align([([0, 1], [0, 1]), ([2, 3], [0, 1])]), "curves: no x is covered by all"),
        (lambda: align([([0, 1], [0, 1]), ([0, 1], [0, math.nan])]), r"curves\[1\].y\[1\]: nan"),
        (lambda: align([([0, 1], [0, 1])], points=1), "points: 1"),
        (lambda: curve_band([1.0, 2.0]), r"curves: expected rank 2, got shape \(2,\)"),
    ],
)
def test_bad_curves_are_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
