"""Robust looks at a noisy series: medians over windows, spells beyond a limit, and whether one window tops another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from partita.lab.doctor.case import Series

LEAST = 5  # steps of the shortest window
MOST = 50


@dataclass(frozen=True)
class Spell:
    """What the medians over windows did beyond a limit.

    since: the step at which the first spell began; latest: that of the last one; still: the last window is beyond;
    share: of the windows; worst: the most extreme median.
    """

    since: int
    latest: int
    still: bool
    share: float
    worst: float


def window(count: int) -> int:
    """Steps of a window in a series of `count`: a twentieth, between 5 and 50."""
    return int(min(max(count // 20, LEAST), MOST))


def medians(values: np.ndarray, size: int) -> np.ndarray:
    """Median of every window of `size` successive values, (N - size + 1,)."""
    return np.median(np.lib.stride_tricks.sliding_window_view(values, size), axis=1)


def spell(series: Series, beyond: Callable[[np.ndarray], np.ndarray], highest: bool = True) -> Spell | None:
    """The spells in which the median over a window is `beyond` the limit; None where there is none.

    A median of five needs three steps beyond the limit, so that single steps never make a spell.
    """
    if len(series) < LEAST:
        return None
    size = window(len(series))
    held = medians(series.values, size)
    bad = beyond(held)
    if not bad.any():
        return None
    starts = np.flatnonzero(bad & ~np.concatenate(([False], bad[:-1])))
    crossed = np.flatnonzero(beyond(series.values))

    def step(start: int) -> int:
        return int(series.steps[crossed[crossed >= start][0]])

    worst = held[bad].max() if highest else held[bad].min()
    return Spell(step(starts[0]), step(starts[-1]), bool(bad[-1]), float(bad.mean()), float(worst))


def ends(series: Series) -> tuple[float, float]:
    """Median of the first and of the last window."""
    size = window(len(series))
    return float(np.median(series.values[:size])), float(np.median(series.values[-size:]))


def rose(before: np.ndarray, after: np.ndarray, least: float) -> bool:
    """Whether the mean of `after` is above that of `before` by `least` and by three standard errors.

    Three rather than two: successive steps share a policy (and `return` in control is a running mean), so that the
    errors are larger than those of independent draws.
    """
    if min(len(before), len(after)) < 2:
        return False
    error = float(np.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after)))
    return bool(after.mean() - before.mean() > max(least, 3 * error))
