"""Summaries of the runs of one arm or two that a few odd seeds do not carry away, after rliable.

    Agarwal et al. 2021   "Deep RL at the edge of the statistical precipice", arXiv:2108.13264 (rliable)
    Newcombe 2006         "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
                          Statist. Med. 25, part 2 (method 5)
    Wilson 1927           "Probable inference, the law of succession, and statistical inference", JASA 22

Where rliable's bootstrap is empty (a share of 0 or 1 has the interval [1, 1] whatever the number of runs), the
intervals are those of the authors above; the coverages that decided it stand in the docstrings.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from partita.core.errors import UserError
from partita.lab.statistics import CHUNK, Array, Estimate, check_level, numbers, percentile

EDGE = 1e-9  # how near 0 and 1 the limits of a probability are sought


def iqm(x: ArrayLike) -> float:
    """The interquartile mean: the mean of what is left when a quarter of the values is cut from each end.

        iqm(x) = mean(x_(k+1), ..., x_(n-k)),   k = floor(n / 4)          (Agarwal et al. 2021, section 4.3)

    x: any shape, all values as one set. +inf (a threshold never reached) counts as the largest value, so that up to
    a quarter of the runs may never arrive.
    """
    return float(_iqm_rows(numbers("x", x, ranks=range(1, 9), infinite=True).reshape(1, -1))[0])


def iqm_estimate(x: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The interquartile mean of all runs, with the percentile interval of rliable's stratified bootstrap.

    Seeds are drawn with replacement within each task, so that every resample has each task equally often (Agarwal et
    al. 2021, section 4.1). x: (seeds,) or (seeds, tasks), scores of different tasks on one scale. Coverage of the 95%
    interval, simulated (1,500) for normal, t3, lognormal and two-valued scores: .92 to .93 with 8 seeds of one task or
    of five, .94 with 16; it describes an arm, verdicts rest on `paired_effect`.
    """
    scores = numbers("x", x, ranks=(1, 2), infinite=True)
    check_level(level, resamples)
    value, seeds = float(_iqm_rows(scores.reshape(1, -1))[0]), len(scores)
    if seeds == 1:
        return Estimate(value, -math.inf, math.inf)
    table, generator = scores.reshape(seeds, -1), np.random.default_rng(seed)
    at_once, draws = max(1, CHUNK // scores.size), np.empty(resamples)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        rows = generator.integers(0, seeds, size=(count, *table.shape))
        draws[start : start + count] = _iqm_rows(table[rows, np.arange(table.shape[1])].reshape(count, -1))
    return Estimate(value, *percentile(draws, level))


def probability_of_improvement(x: ArrayLike, y: ArrayLike, paired: bool = False, level: float = 0.95) -> Estimate:
    """How likely a run of X is to beat a run of Y, a tie counting half.

        P = 1/(n m) sum_ij [x_i > y_j] + [x_i = y_j] / 2                  (Agarwal et al. 2021, section 4.3)
        paired:  P = 1/n sum_i [x_i > y_i] + [x_i = y_i] / 2

    x: (n,), y: (m,), higher is better; +inf is let through. The interval is Newcombe's (2006, method 5): all P with

        (P_hat - P)^2 <= z^2 P (1 - P) / (n m) (1 + N ((1 - P) / (2 - P) + P / (1 + P))),    N = (n + m) / 2 - 1

    and Wilson's of n pairs when paired. Coverage of 95% intervals with 8 runs an arm, simulated (4,000), and of
    the percentile bootstrap in brackets: normal, rounded, lognormal and two-valued arms, P from .5 to .92, .950 to .968
    (.797 to .935); spreads that differ four times .938 (.809), ten times .916 (.897). Paired, P from .5 to .95: .93 to
    .96 (.33 to .93).
    """
    first, second = numbers("x", x, infinite=True), numbers("y", y, infinite=True)
    check_level(level)
    if paired:
        if len(first) != len(second):
            raise UserError(f"x: {len(first)} runs, y has {len(second)}; paired runs have one value a seed in each")
        value = float(np.mean((first > second) + 0.5 * (first == second)))
        low, high = _wilson(np.array(value), len(first), level)
        return Estimate(value, float(low), float(high))
    ordered = np.sort(second)  # runs of Y below x_i, and below or tied with it: P without an (n, m) table
    beaten = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
    value = float(beaten.sum()) / (2 * len(first) * len(second))
    return Estimate(value, *_newcombe(value, len(first), len(second), level))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, level: float = 0.95) -> tuple[Array, Array, Array]:
    """The share of runs above each threshold, with a pointwise band.

        F(tau) = 1/n sum_i [x_i > tau]                                    (Agarwal et al. 2021, section 4.2)

    scores: (runs,), thresholds: (points,); share, low and high: (points,). For one task the bootstrap of the share is
    binomial in the share observed, so that its band closes where all runs are above or none (8 runs, F = .95: it
    covers .33 of the time); the band is Wilson's, which covers .93 to .96 for F from .5 to .95.
    """
    runs, taus = numbers("scores", scores, infinite=True), numbers("thresholds", thresholds)
    check_level(level)
    share = 1.0 - np.searchsorted(np.sort(runs), taus, "right") / len(runs)
    return share, *_wilson(share, len(runs), level)


def _iqm_rows(rows: Array) -> Array:
    """Interquartile mean of each row: (rows, values) to (rows,)."""
    count = rows.shape[1]
    cut = count // 4
    ordered = np.partition(rows, (cut, count - cut - 1), axis=1)
    return ordered[:, cut : count - cut].mean(axis=1)


def _wilson(share: Array, count: int, level: float) -> tuple[Array, Array]:
    """Wilson's interval of shares of `count` trials; half successes (ties) are allowed."""
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return np.minimum(np.maximum(centre - half, 0.0), share), np.maximum(np.minimum(centre + half, 1.0), share)


def _newcombe(value: float, n: int, m: int, level: float) -> tuple[float, float]:
    """The two roots around `value` of the equation in `probability_of_improvement`; 0 and 1 where it lies there."""
    z2, extra = float(stats.norm.ppf((1 + level) / 2)) ** 2, (n + m) / 2 - 1

    def excess(p: float) -> float:
        spread = p * (1 - p) / (n * m) * (1 + extra * ((1 - p) / (2 - p) + p / (1 + p)))
        return (value - p) ** 2 - z2 * spread

    low = optimize.brentq(excess, 0.0, min(value, 1 - EDGE)) if value > 0 else 0.0
    high = optimize.brentq(excess, max(value, EDGE), 1.0) if value < 1 else 1.0
    return float(low), float(high)
