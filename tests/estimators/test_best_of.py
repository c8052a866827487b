"""Best of n against the mean over all sets of n, with and without ties."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.best_of import best_of, best_of_kl


def counted(value, judge, n):
    """The mean over all sets of n of what is chosen; those that are liked most alike are chosen alike often."""
    total, sets = 0.0, list(itertools.combinations(range(len(value)), n))
    for some in sets:
        best = [i for i in some if judge[i] == max(judge[j] for j in some)]
        total += sum(value[i] for i in best) / len(best)
    return total / len(sets)


def test_by_hand():
    value, judge = torch.tensor([[10.0, 20.0, 40.0]]), torch.tensor([[0.3, 0.9, 0.1]])
    assert best_of(value, judge, 1).tolist() == pytest.approx([70 / 3])
    assert best_of(value, judge, 2).tolist() == pytest.approx([(20 + 10 + 20) / 3])  # 2 of 3 sets hold the second
    assert best_of(value, judge, 3).tolist() == pytest.approx([20.0])
    assert best_of(value, judge, 2).dtype == torch.float64


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([2, 100]))
def test_it_is_the_mean_over_all_sets_in_any_order(seed, n, levels):
    g = torch.Generator().manual_seed(seed)
    value, judge = torch.randn(3, 6, generator=g, dtype=torch.float64), torch.randint(levels, (3, 6), generator=g)
    expected = [counted(v, j, n) for v, j in zip(value.tolist(), judge.tolist(), strict=True)]
    assert best_of(value, judge, n).tolist() == pytest.approx(expected, abs=1e-9)
    order = torch.randperm(6, generator=g)
    assert best_of(value[:, order], judge[:, order], n).tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0.1, 10), st.floats(-5, 5))
def test_the_judge_counts_by_its_order_and_values_are_averaged(seed, n, scale, shift):
    g = torch.Generator().manual_seed(seed)
    value, judge = torch.randn(2, 2, 20, generator=g, dtype=torch.float64)
    found = best_of(value, judge, n)
    torch.testing.assert_close(best_of(value, judge.exp(), n), found)
    torch.testing.assert_close(best_of(scale * value + shift, judge, n), scale * found + shift)
    assert bool((best_of(judge, judge, min(n + 1, 20)) >= best_of(judge, judge, n) - 1e-12).all())


def test_many_samples():
    """Of 5000 uniform grid points the best of n is that of the order statistic, n (N + 1) / (n + 1)."""
    rank = torch.arange(1, 5001).double()[None]
    for n in (1, 7, 500, 4999, 5000):
        assert best_of(rank, rank, n).item() == pytest.approx(n * 5001 / (n + 1), rel=1e-8)


def test_the_divergence_is_that_of_ranks():
    """The best of n of a continuum of samples has density n u^(n-1) in the rank u: KL by the trapezoidal rule."""
    u = torch.linspace(1e-9, 1, 200_001, dtype=torch.float64)
    for n in (1, 2, 8, 64):
        density = n * u ** (n - 1)
        kl = torch.trapezoid(torch.xlogy(density, density), u)
        assert best_of_kl(n) == pytest.approx(float(kl), abs=1e-4)
    assert best_of_kl(12_500) == pytest.approx(8.4, abs=0.05)  # as the paper says
    assert best_of_kl(2) == pytest.approx(math.log(2) - 0.5)


def test_what_is_out_of_range_is_refused():
    x = torch.zeros(2, 3)
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n: expected 1 to 3, the samples of a problem, got {n}"):
            best_of(x, x, n)
    with pytest.raises(ValueError, match="judge: expected"):
        best_of(x, torch.zeros(3, 2), 1)
    with pytest.raises(ValueError, match="n: expected 1 or more, got 0"):
        best_of_kl(0)
