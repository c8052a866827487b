"""Efficiency: what learning curves say over steps, samples or seconds, and bands around them.

A curve is a pair (x, y): x (points,) increasing, in steps, samples or seconds; y (points,) in the metric's unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from partita.core.errors import UserError, nearest
from partita.lab.statistics import Array, check_level, numbers


def align(curves: Sequence[tuple[ArrayLike, ArrayLike]], points: int | None = None) -> tuple[Array, Array]:
    """Curves of several seeds on one grid, by linear interpolation over the range that all of them cover.

        grid_j from max_s x_s[0] to min_s x_s[-1],     out[s, j] = y_s(grid_j)

    curves: (x, y) a seed, of any lengths; points: size of an even grid, by default that of the curve with the most
    points in the range. Curves that share their x keep it, uninterpolated. Returns (points,) and (seeds, points).
    """
    if len(curves) == 0:
        raise UserError("curves: none given; pass at least one (x, y)")
    if points is not None and points < 2:
        raise UserError(f"points: {points}; a grid needs at least 2")
    pairs = [_curve(f"curves[{i}]", x, y) for i, (x, y) in enumerate(curves)]
    first = pairs[0][0]
    if points is None and all(np.array_equal(x, first) for x, _ in pairs):
        return first, np.stack([y for _, y in pairs])
    start, stop = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
    if start > stop:
        raise UserError(f"curves: no x is covered by all (one starts at {start:g}, one ends at {stop:g}); train longer")
    if start == stop:
        grid = np.array([start])
    else:
        grid = np.linspace(start, stop, points or max(2, *(_within(x, start, stop) for x, _ in pairs)))
    return grid, np.stack([np.interp(grid, x, y) for x, y in pairs])


def curve_band(curves: ArrayLike, level: float = 0.95) -> tuple[Array, Array, Array]:
    """The mean curve over seeds with the pointwise Student interval of the mean: mean -+ t s / sqrt(seeds).

    curves: (seeds, points); mean, low and high: (points,). Each point is covered with probability `level`, not the
    curve as a whole. One seed: low is -inf and high inf.
    """
    table = numbers("curves", curves, ranks=(2,))
    check_level(level)
    seeds, mean = len(table), table.mean(axis=0)
    if seeds == 1:
        return mean, np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    half = float(stats.t.ppf((1 + level) / 2, seeds - 1)) * table.std(axis=0, ddof=1) / math.sqrt(seeds)
    flat = (table == table[0]).all(axis=0)
    mean, half = np.where(flat, table[0], mean), np.where(flat, 0.0, half)
    return mean, mean - half, mean + half


def area(x: ArrayLike, y: ArrayLike) -> float:
    """The area under a curve by trapezoids, divided by the range of x: the mean level while learning.

        1 / (x_n - x_1) sum_i (x_i+1 - x_i) (y_i + y_i+1) / 2

    x, y: (points,), in the unit of y. A single point is its own mean level. Compare arms over the same range of x.
    """
    where, what = _curve("curve", x, y)
    if len(where) == 1:
        return float(what[0])
    return float(np.trapezoid(what, where) / (where[-1] - where[0]))


def time_to(
    x: ArrayLike, y: ArrayLike, threshold: float, better: Literal["higher", "lower"] = "higher", smooth: int = 1
) -> float:
    """The first x at which the best so far reaches the threshold; inf when it never does.

        min { x_i : mean(y_i-k+1, ..., y_i) >= threshold },   <= where lower is better

    x, y: (points,); smooth: k, the window of a trailing mean, counted only where it is full, against reaching the
    threshold by one lucky evaluation. Nothing is interpolated: the answer is an x of the curve.
    """
    where, what = _curve("curve", x, y)
    if better not in ("higher", "lower"):
        raise UserError(f"better: {better!r} is unknown; {nearest(str(better), ('higher', 'lower'))}")
    if not 1 <= smooth <= len(what):
        raise UserError(f"smooth: {smooth}; give 1 to {len(what)}, the points of the curve")
    if math.isnan(threshold):
        raise UserError("threshold: nan; give a number in the unit of the metric")
    level = np.lib.stride_tricks.sliding_window_view(what, smooth).mean(axis=1)
    reached = level >= threshold if better == "higher" else level <= threshold
    return float(where[smooth - 1 + int(np.argmax(reached))]) if reached.any() else math.inf


def _curve(name: str, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    where, what = numbers(f"{name}.x", x), numbers(f"{name}.y", y)
    if len(where) != len(what):
        raise UserError(f"{name}: {len(where)} values of x and {len(what)} of y; give one y for each x")
    back = np.flatnonzero(np.diff(where) <= 0)
    if back.size:
        i = int(back[0]) + 1
        raise UserError(f"{name}.x[{i}]: {where[i]:g} after {where[i - 1]:g}; sort the points, one for each x")
    return where, what


def _within(x: Array, start: float, stop: float) -> int:
    return int(np.count_nonzero((x >= start) & (x <= stop)))
